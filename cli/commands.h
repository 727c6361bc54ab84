// One function a command. Each throws Error on the user's mistakes.
#pragma once

#include "cli/arguments.h"

namespace cleave {

void doctor_command(const DoctorArguments& arguments);
void trace_command(const TraceArguments& arguments);
void regions_command(const RegionsArguments& arguments);
void plan_command(const PlanArguments& arguments);  // DoesNotFit when nothing fits
void view_command(const ViewArguments& arguments);
void train_command(const TrainArguments& arguments);  // DoesNotFit when nothing fits

}  // namespace cleave
