/* The selection on a CUDA device: a plain C interface on device pointers, for ctypes. It knows neither Python nor
   torch.

   Every function returns 0, or the number of a CUDA error that neuronllm_cuda_error puts into words. */
#ifndef NEURONLLM_SELECT_CUDA_H
#define NEURONLLM_SELECT_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* dtype: 0 float16, 1 bfloat16, 2 float32, 3 float64. Rows lie row_stride elements apart, the elements of a row side by
   side. The outputs have `rows` rows of n_largest and n_smallest places, at most `columns`, on the device; places
   without an element get NaN and index -1. n_nan has one place a row, on the host.

   With workspace NULL, *bytes becomes the size it must have. `stream` is a cudaStream_t; the call waits for it. */
int neuronllm_select_cuda(const void* data, int dtype, int64_t rows, int64_t columns, int64_t row_stride,
                          int64_t n_largest, int64_t n_smallest, void* largest_values, int64_t* largest_indices,
                          void* smallest_values, int64_t* smallest_indices, int64_t* n_nan, void* workspace,
                          size_t* bytes, void* stream);

const char* neuronllm_cuda_error(int error);

/* 0 without a device, and also without a driver. */
int neuronllm_cuda_devices(void);

#ifdef __cplusplus
}
#endif
#endif
