// The kernels for AMX on emulated tiles, for tests. Compiled for a plain x86-64, but for the region below.
#include <immintrin.h>
#include <time.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")
namespace kvasir {
namespace {

constexpr int kRowBlock = 32;    // rows of a projection that share a panel
constexpr int kTileRows = 32;   // queries whose scores are held at a time
constexpr int kAttendRows = 512;  // queries of one task, which share packed keys
constexpr int kMostWidth = 1 << 17;
constexpr int kMostHeadDim = 1024;
#define KVASIR_BF16 1
#define KVASIR_TILES 1
#define KVASIR_VNNI 1
#include "vector512.inc"
#include "tiles_emulated.inc"
thread_local bool configured = false;
#include "mma_tiles.inc"
#include "generic.inc"
#include "peak_tiles.inc"

}  // namespace
#pragma GCC pop_options

extern const Kernels kernels_amx_emulated;
const Kernels kernels_amx_emulated = {
    "amx_emulated", kAttendRows, linear, norm, quantise, rotate, attend, merge, attend_scratch_bytes,
    begin_step, end_step, peak,
};

}  // namespace kvasir
