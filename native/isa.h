// Which instruction sets this machine has, and the kernels written for each.
#pragma once
#include "kernels.h"

namespace kvasir {

enum Isa : int { kAvx2, kAvx512, kAvx512Bf16, kAmx, kAmxEmulated, kIsaCount };

const char* isa_name(int isa);
// Why this machine cannot run `isa`; empty where it can.
const char* against(int isa);
// The kernels of `isa`, which nothing may speak against.
const Kernels& kernels_of(int isa);

}  // namespace kvasir
