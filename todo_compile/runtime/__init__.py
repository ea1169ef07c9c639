"""Run what was compiled: sessions over engines and ONNX files, and components for diffusers.

`files` decides whether an output may be opened at all, `session` what goes in and out,
`onnx_session` and `tensorrt_session` run it; the rest makes it look like the component that it was
made from.
Importing this package imports neither torch nor diffusers.
"""
