// Calls a TensorRT plan on zeros: reads engine.plan, gives every input a batch, runs once, prints what comes out.
//
//     g++ -std=c++17 plan.cpp -o plan -I $CUDA/include -L $CUDA/lib64 -lnvinfer -lcudart
//     ./plan artifacts/vip_s7/fp16/tensorrt/engine.plan 4
//
// For TensorRT 10 and 11. A plan holds compiled kernels: load only one that you or somebody you trust built.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

using nvinfer1::DataType;

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << message << '\n';
    }
};

void require(bool held, std::string const& what) {
    if (!held) throw std::runtime_error(what);
}

void require(cudaError_t status) { require(status == cudaSuccess, cudaGetErrorString(status)); }

struct Free {
    void operator()(void* memory) const { cudaFree(memory); }
};
using Memory = std::unique_ptr<void, Free>;

std::size_t bytesOf(DataType type) {
    switch (type) {
    case DataType::kINT64: return 8;
    case DataType::kFLOAT: case DataType::kINT32: return 4;
    case DataType::kHALF: case DataType::kBF16: return 2;
    case DataType::kBOOL: case DataType::kINT8: case DataType::kUINT8: return 1;
    default: throw std::runtime_error("a port has a type that no engine of mlpdeploy has");
    }
}

std::size_t bytesOf(nvinfer1::Dims const& shape, DataType type) {
    std::size_t bytes = bytesOf(type);
    for (std::int32_t axis = 0; axis < shape.nbDims; ++axis) {
        require(shape.d[axis] >= 0, "a shape is not known: an input has none yet");
        bytes *= static_cast<std::size_t>(shape.d[axis]);
    }
    return bytes;
}

void call(std::string const& path, std::int64_t batch) {
    std::ifstream file(path, std::ios::binary);
    require(file.good(), path + " cannot be read");
    std::vector<char> const plan{std::istreambuf_iterator<char>(file), {}};

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
    require(runtime != nullptr, "TensorRT finds no GPU");
    std::unique_ptr<nvinfer1::ICudaEngine> engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
    require(engine != nullptr, path + " is not for this GPU and this TensorRT");
    std::unique_ptr<nvinfer1::IExecutionContext> context{engine->createExecutionContext()};
    require(context != nullptr, "the GPU has no room for the engine");

    std::vector<std::string> names;
    for (std::int32_t port = 0; port < engine->getNbIOTensors(); ++port) {
        names.emplace_back(engine->getIOTensorName(port));
    }
    auto const isInput = [&](std::string const& name) {
        return engine->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kINPUT;
    };
    for (auto const& name : names) {  // the shapes of outputs follow from those of all inputs
        if (!isInput(name)) continue;
        nvinfer1::Dims shape = engine->getTensorShape(name.c_str());
        if (shape.nbDims > 0 && shape.d[0] < 0) shape.d[0] = batch;  // else the plan is for one batch size
        require(context->setInputShape(name.c_str(), shape), name + ": its first profile does not take this batch");
    }

    cudaStream_t const stream = cudaStreamPerThread;
    std::vector<Memory> memory;
    for (auto const& name : names) {
        auto const bytes = bytesOf(context->getTensorShape(name.c_str()), engine->getTensorDataType(name.c_str()));
        void* place{};
        require(cudaMalloc(&place, bytes));
        memory.emplace_back(place);
        require(cudaMemsetAsync(place, 0, bytes, stream));  // here a service copies its images
        require(context->setTensorAddress(name.c_str(), place), name + ": TensorRT refuses its memory");
    }
    require(context->enqueueV3(stream), "TensorRT cannot run the engine");

    for (std::size_t port = 0; port < names.size(); ++port) {
        if (isInput(names[port])) continue;
        auto const shape = context->getTensorShape(names[port].c_str());
        auto const type = engine->getTensorDataType(names[port].c_str());
        std::vector<char> bytes(bytesOf(shape, type));
        require(cudaMemcpyAsync(bytes.data(), memory[port].get(), bytes.size(), cudaMemcpyDeviceToHost, stream));
        require(cudaStreamSynchronize(stream));
        std::cout << names[port] << ": " << bytes.size() << " bytes";
        if (float first{}; type == DataType::kFLOAT && bytes.size() >= sizeof first) {
            std::memcpy(&first, bytes.data(), sizeof first);
            std::cout << ", the first number " << first;
        }
        std::cout << '\n';
    }
}

int main(int count, char** words) try {
    require(count == 3 && std::atoll(words[2]) > 0, "usage: plan ENGINE.plan BATCH");
    call(words[1], std::atoll(words[2]));
} catch (std::exception const& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
