"""Records `bench model` on whole models: all-MiniLM-L6-v2 with its weights, and a ViT-B/16 with random ones.

    python benchmarks/end_to_end.py                     all of them, on one core
    python benchmarks/end_to_end.py vit_b16 --rounds 9

Exported and rewritten models go to models/cache, results to benchmarks/results/model_*.json.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from intfa_onnx import cli, rewrite

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "models"))

import minilm  # noqa: E402

SIZES = {  # name of the record: what is exported, and sizes of its inputs
    "minilm_256": ("minilm", ["input_ids:1x256", "attention_mask:1x256"]),
    "minilm_512": ("minilm", ["input_ids:1x512", "attention_mask:1x512"]),
    "vit_b16": ("vit", []),
}


def export_vit(path: Path = minilm.CACHE / "vit-b16-random.onnx") -> Path:
    """Export a ViT-B/16 (12 layers, 12 heads of 64, 197 tokens) once; its time does not depend on its weights."""
    if path.exists():
        return path
    import torch
    import transformers

    class Encoder(torch.nn.Module):
        """The encoder with a tensor as its result."""

        def __init__(self) -> None:
            super().__init__()
            self.vit = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.vit(pixel_values=pixel_values).last_hidden_state

    torch.manual_seed(0)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial.onnx")
    images = torch.zeros(1, 3, 224, 224)
    torch.onnx.export(
        Encoder().eval(), (images,), partial, dynamo=True, opset_version=18, external_data=False, verbose=False
    )
    partial.rename(path)
    return path


def record(name: str, rounds: int) -> None:
    """Write ``model_<name>.json``: the original beside the rewritten model.

    Raises:
        SystemExit: the benchmark failed, or an attention was not replaced; an earlier record stays.
    """
    kind, shapes = SIZES[name]
    original = minilm.export() if kind == "minilm" else export_vit()
    rewritten = original.with_name(f"{original.stem}.int8.onnx")
    result = rewrite(original)
    if kept := [a for a in result.attentions if a.decision != "replaced"] or not result.attentions:
        sys.exit(f"{name}: not replaced: {kept}")
    result.save(rewritten, force=True)
    arguments = ["bench", "model", str(original), str(rewritten), "--rounds", str(rounds), "--runs", "3", "--json"]
    for shape in shapes:
        arguments += ["--shapes", shape]
    target = ROOT / f"benchmarks/results/model_cpu_1t_{name}.json"
    part = target.with_suffix(".part")
    with open(part, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        code = cli.main(arguments)
    if code:
        sys.exit(code)
    part.replace(target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SIZES), metavar="NAME", help=", ".join(SIZES))
    parser.add_argument("--rounds", type=int, default=21, help="short ones, so that a slow spell hits both models")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - SIZES.keys()):
        parser.error(f"no model {unknown[0]!r} (supported: {', '.join(SIZES)})")
    for each in chosen.names:
        record(each, chosen.rounds)
