"""What an engine of TensorRT's can be beside fast, by the names that users ask for."""

from __future__ import annotations

HARDWARE, VERSION, STREAMING, STRIPPED = "hardware-compatible", "version-compatible", "weight-streaming", "stripped"

FEATURES = {
    HARDWARE: "runs on every GPU from Ampere on",
    VERSION: "runs with later versions of the same major TensorRT",
    STREAMING: "keeps on the host what of its weights has no room on the GPU",
    STRIPPED: "holds no weights: loading takes them from model.onnx, and new ones need no new engine",
}
