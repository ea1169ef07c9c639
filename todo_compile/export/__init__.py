"""Export of finished graphs: ONNX, TensorRT engines, bundles. Knows nothing of attention."""
