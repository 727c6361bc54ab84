// One function a command. Each throws Error on the user's mistakes.
#pragma once

#include <stdexcept>
#include <string>

#include "cli/arguments.h"

namespace cleave {

// A signal has ended a command early: exit status 128 + the signal's number, as shells count.
class Interrupted : public std::runtime_error {
 public:
  Interrupted(int signal, const std::string& what) : std::runtime_error(what), signal_(signal) {}
  int status() const { return 128 + signal_; }

 private:
  int signal_;
};

void calibrate_command(const CalibrateArguments& arguments);
void doctor_command(const DoctorArguments& arguments);  // Error when something needed is broken
void trace_command(const TraceArguments& arguments);
void regions_command(const RegionsArguments& arguments);
void plan_command(const PlanArguments& arguments);  // DoesNotFit when nothing fits
void explain_command(const ExplainArguments& arguments);
void diff_command(const DiffArguments& arguments);
void fit_command(const FitArguments& arguments);  // DoesNotFit when it does not
void export_command(const ExportArguments& arguments);
void simulate_command(const SimulateArguments& arguments);
void view_command(const ViewArguments& arguments);
void train_command(const TrainArguments& arguments);  // DoesNotFit when nothing fits
void bench_command(const BenchArguments& arguments);  // DoesNotFit when nothing fits
void checkpoint_ls_command(const CheckpointArguments& arguments);
void checkpoint_verify_command(
    const CheckpointArguments& arguments);  // Error when one is not sound
void checkpoint_export_command(const CheckpointArguments& arguments);
void generate_command(const GenerateArguments& arguments);  // DoesNotFit when nothing fits

}  // namespace cleave
