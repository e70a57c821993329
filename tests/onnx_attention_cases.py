"""ONNX's own backend tests of ``Attention``, which ship with the onnx package: the operator, and its body written out.

In one place, because onnx collects once per process: its modules state their tests when they are first imported, and
whoever asks later gets the same list, whatever operator is asked for.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # collecting computes every operator's tests, some with overflows on purpose
    from onnx.backend.test.case.node import collect_testcases

    CASES = {c.name: c for c in collect_testcases("Attention") if c.name.startswith("test_attention_")}

# Without those that have Attention's function body in its place ("_expanded", "_expanded_ver26" and the like).
OPERATOR_CASES = {name: case for name, case in CASES.items() if "expanded" not in name}
