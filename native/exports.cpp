// The functions that Python calls. None throws; what fails says so by its result.
#include <exception>

#include "isa.h"
#include "limits.h"
#include "pack.h"
#include "program.h"

using namespace kvasir;

#pragma GCC visibility push(default)
extern "C" {

int kvasir_abi_version() { return 2; }
int kvasir_isa_count() { return kIsaCount; }
const char* kvasir_isa_name(int isa) { return isa_name(isa); }
const char* kvasir_isa_against(int isa) { return against(isa); }

int64_t kvasir_packed_bytes(int32_t format, int64_t n_out, int64_t n_in) {
  return packed_bytes(format, n_out, n_in);
}
void kvasir_pack_bf16(const bf16* weight, int64_t n_out, int64_t n_in, bf16* packed) {
  pack_bf16(weight, n_out, n_in, packed);
}
void kvasir_pack_int8(const int8_t* codes, int64_t n_out, int64_t n_in, uint8_t* packed) {
  pack_int8(codes, n_out, n_in, packed);
}
void kvasir_pack_int4(const uint8_t* codes, const uint16_t* scales, const uint16_t* least,
                      int64_t n_out, int64_t n_in, uint8_t* packed) {
  pack_int4(codes, scales, least, n_out, n_in, packed);
}

int64_t kvasir_kv_row_bytes(const Model* model) { return kv_row_bytes(*model); }

// null where the instruction set cannot run here or memory is short
void* kvasir_open(const Model* model, int isa, int threads) {
  if (*against(isa)) return nullptr;
  try {
    return new Program(*model, kernels_of(isa), threads);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void kvasir_close(void* program) { delete static_cast<Program*>(program); }

// 0, or 1 where memory is short
int kvasir_run(void* program, const Step* step) {
  try {
    static_cast<Program*>(program)->run(*step);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}

int64_t kvasir_scratch_bytes(const void* program) {
  return int64_t(static_cast<const Program*>(program)->scratch_bytes());
}

// 0 where memory is short
double kvasir_read_rate(int threads, int64_t bytes) {
  try {
    return read_rate(threads, bytes);
  } catch (const std::exception&) {
    return 0;
  }
}

// 0 where the instruction set cannot run here or threads cannot be had
double kvasir_peak_rate(int isa, int32_t kind, int threads) {
  if (*against(isa)) return 0;
  try {
    return peak_rate(kernels_of(isa), Peak(kind), threads);
  } catch (const std::exception&) {
    return 0;
  }
}

}  // extern "C"
#pragma GCC visibility pop
