"""An encoder's layers compiled with `torch.compile`: what is not a matrix product or attention becomes fewer kernels.

Attention stays as it is: it leaves and reads keys and values, which differ from pass to pass. All else of a layer, on
encoders with the modules of BERT (BERT, RoBERTa, ELECTRA and their like), is compiled once for all sizes of batches.
"""

from __future__ import annotations

from transformers import PreTrainedModel


def compile_layers(backbone: PreTrainedModel) -> bool:
    """Compile the layers of a backbone in place; False, and nothing done, where its modules are others."""
    parts = [part for name, part in backbone.named_modules() if name.endswith((".output", ".intermediate"))]
    for part in parts:
        part.compile(dynamic=True)
    return bool(parts)
