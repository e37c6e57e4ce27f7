#include "isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace kvasir {

extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_bf16, kernels_amx,
    kernels_amx_emulated;

namespace {

constexpr int kAskPermission = 0x1023, kTileData = 18;  // of arch_prctl(2)

struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
  Leaf(unsigned number, unsigned sub) { __get_cpuid_count(number, sub, &a, &b, &c, &d); }
};

bool bit(unsigned word, int at) { return word >> at & 1; }

uint64_t enabled_state() {
  if (!bit(Leaf(1, 0).c, 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

bool has(uint64_t state) { return (enabled_state() & state) == state; }

const char* against_avx2() {
  const Leaf one(1, 0), seven(7, 0);
  if (!has(0x6)) return "the system does not save AVX registers";
  if (!bit(seven.b, 5)) return "the CPU has no AVX2";
  if (!bit(one.c, 12) || !bit(one.c, 29)) return "the CPU has no FMA or F16C";
  return "";
}

const char* against_avx512() {
  if (*against_avx2()) return against_avx2();
  const Leaf seven(7, 0);
  if (!has(0xe6)) return "the system does not save AVX-512 registers";
  const int needed[] = {16, 17, 30, 31};  // F, DQ, BW, VL
  for (int at : needed)
    if (!bit(seven.b, at)) return "the CPU has no AVX-512 F, DQ, BW and VL";
  return "";
}

const char* against_avx512_bf16() {
  if (*against_avx512()) return against_avx512();
  if (!bit(Leaf(7, 0).c, 11)) return "the CPU has no AVX-512 VNNI";
  if (!bit(Leaf(7, 1).a, 5)) return "the CPU has no AVX-512 BF16";
  return "";
}

// The permission holds for threads that start later, so it is asked before any does.
bool permitted() {
  static const bool granted = syscall(SYS_arch_prctl, kAskPermission, kTileData) == 0;
  return granted;
}

const char* against_amx() {
  if (*against_avx512_bf16()) return against_avx512_bf16();
  const Leaf seven(7, 0);
  if (!bit(seven.d, 24) || !bit(seven.d, 22) || !bit(seven.d, 25))
    return "the CPU has no AMX tiles of bfloat16 and int8";
  if (!has(0x60000)) return "the system does not save AMX tiles";
  if (!permitted()) return "the system does not permit AMX";
  return "";
}

}  // namespace

const char* isa_name(int isa) {
  static const char* const names[] = {"avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"};
  return isa >= 0 && isa < kIsaCount ? names[isa] : "";
}

const char* against(int isa) {
  switch (isa) {
    case kAvx2: return against_avx2();
    case kAvx512: return against_avx512();
    case kAvx512Bf16: return against_avx512_bf16();
    case kAmx: return against_amx();
    case kAmxEmulated: return against_avx512_bf16();
  }
  return "there is no such instruction set";
}

const Kernels& kernels_of(int isa) {
  switch (isa) {
    case kAvx512: return kernels_avx512;
    case kAvx512Bf16: return kernels_avx512_bf16;
    case kAmx: return kernels_amx;
    case kAmxEmulated: return kernels_amx_emulated;
  }
  return kernels_avx2;
}

}  // namespace kvasir
