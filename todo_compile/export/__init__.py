"""Export of finished graphs: ONNX and TensorRT engines. Knows nothing of attention."""
