"""Recorders for firstdiff: they write what an inference engine computed as a trace.

One module per engine, each imported by name so that only its engine needs to be installed:

    import firstdiff.transformers          # Hugging Face transformers
    import firstdiff.llama_cpp             # llama.cpp, through llama-cpp-python
    import firstdiff.mlx_lm                # MLX, through mlx-lm
    import firstdiff.onnx                  # ONNX Runtime and OpenVINO
    import firstdiff.trace                 # the bare trace writer, for any other engine

Each engine's module also runs as a program: `python -m firstdiff.transformers MODEL --prompt TEXT -o TRACE`.

A trace is then judged by `firstdiff check TRACE --model MODEL`.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
