// What --devices means to the commands that run a program here, and what goes with it.
#pragma once

#include <string>
#include <vector>

#include "executor/fuse.h"
#include "graph/types.h"
#include "planner/cluster.h"

namespace cleave {

// Whether they are GPUs, by their preset or their file.
bool on_gpu(const std::string& devices);

// cpu:N, or one GPU. Throws Error on what this machine cannot run.
Cluster training_devices(const std::string& devices);

// A line on stderr when these are more CPU devices than this machine has cores.
void tell_shared_cores(const std::string& devices);

// What --precision asks for: a type, and of a GPU whether products of f32 are in TF32.
struct ComputePrecision {
  std::string name;  // "fp32", ...; empty: nothing was asked for
  bool tf32 = false;
};
// Throws Error when the devices do not have it.
ComputePrecision precision_of(const std::string& devices, const std::string& name);

// Throws Error when the devices do not compute in it.
void expect_precision(const std::string& devices, DType dtype);

// What --fp8 says, of a program in this precision. Throws Error where there are no such products.
F8Options f8_of(const std::string& scaling, bool gpu, DType precision);

// The fusions that --no-fuse names. Throws Error when there is no such one, or nothing is fused.
std::vector<std::string> no_fuse_of(const std::string& list, bool gpu);

}  // namespace cleave
