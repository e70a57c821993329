"""A zoo of small models with random weights, one for each way in which attention reaches ONNX.

``python models/zoo --help`` exports it; ``benchmarks/coverage.py`` counts what the rewriter finds in it.
"""

from zoo import (
    derived_models,
    graphs,
    library_models,
    torch_modules,
    transformer_decoders,
    transformer_models,
    transformer_speech,
    transformer_towers,
    transformer_vision,
)
from zoo.case import DEFINITIONS, Case, Definition, Input

__all__ = [
    "DEFINITIONS",
    "Case",
    "Definition",
    "Input",
    "derived_models",
    "graphs",
    "library_models",
    "torch_modules",
    "transformer_decoders",
    "transformer_models",
    "transformer_speech",
    "transformer_towers",
    "transformer_vision",
]
