// Declares what examples/plan.cpp calls of CUDA's runtime, so that it compiles where NVIDIA's headers are not.
#pragma once
#include <cstddef>

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
#define cudaStreamPerThread ((cudaStream_t)0x2)

char const* cudaGetErrorString(cudaError_t status);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMalloc(void** place, std::size_t bytes);
cudaError_t cudaFree(void* place);
cudaError_t cudaMemsetAsync(void* place, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaMemcpyAsync(
    void* target, void const* source, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
