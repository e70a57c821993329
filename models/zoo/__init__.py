"""A zoo of small models with random weights, one for each way in which attention reaches ONNX.

``python models/zoo --help`` exports it; ``benchmarks/coverage.py`` counts what the rewriter finds in it.
"""

from zoo import graphs, torch_modules, transformer_models
from zoo.case import DEFINITIONS, Case, Definition, Input

__all__ = ["DEFINITIONS", "Case", "Definition", "Input", "graphs", "torch_modules", "transformer_models"]
