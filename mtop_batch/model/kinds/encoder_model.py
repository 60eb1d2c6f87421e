"""A model around a pretrained encoder: which encoders it has, and how prompts and text go through one of them.

Shapes: B texts, S prompt positions, T text positions, E width of the input embeddings, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mtop_batch.errors import ConfigError
from mtop_batch.model.encoder.backbone import build_backbone
from mtop_batch.model.encoder.encode import Pass, encode, ragged_batch
from mtop_batch.model.encoder.families import Branch, encode_branches
from mtop_batch.model.encoder.fused import FusedLayers, encode_branches_fused, encode_fused
from mtop_batch.model.encoder.inputs import Text, embedding_size, word_embeddings
from mtop_batch.model.encoder.lora import FamilyLoRA, MergedWeights, lora_layers, merged_weights
from mtop_batch.model.kinds.config import KindConfig
from mtop_batch.model.parts.stacked_heads import num_versions
from mtop_batch.model.parts.vector_inputs import PlacedVectors, ProjectedInputs
from mtop_batch.tasks import VectorInput


class EncoderModel(PreTrainedModel):
    """A backbone, and its layers as inference has them.

    Args:
        config: Its backbone is built with random weights unless one is given.
        backbone: The encoder to use.
    """

    config_class = KindConfig
    config: KindConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: KindConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ConfigError(
                f"a {type(config).__name__} without backbone_config makes no model; use {type(self).__name__}."
                "from_backbone"
            )
        self._fused: FusedLayers | None = None
        self._fused_families: dict[FamilyLoRA, FusedLayers] = {}
        self._merged: dict[FamilyLoRA, tuple[tuple[Any, ...], MergedWeights]] = {}
        self.vector_inputs = [VectorInput(**spec) for spec in config.inputs]
        self._add_encoder(build_backbone(config.backbone_config) if backbone is None else backbone)

    def _add_inputs(self) -> None:
        """Make the modules for what stands beside texts; a kind that can read it calls this."""
        if self.vector_inputs:
            self.projected_inputs = ProjectedInputs(self.vector_inputs, embedding_size(self.backbone))

    def _draw_inputs(self, generator: torch.Generator) -> None:
        """Draw these modules at random."""
        if self.vector_inputs:
            self.projected_inputs.initialise(generator)

    def input_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Their parameters, which all outputs depend on."""
        if self.vector_inputs:
            yield from self.projected_inputs.named_parameters(prefix="inputs")

    def text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        num_tokens: int | None = None,
        input_vectors: PlacedVectors | None = None,
    ) -> Text:
        """A batch as `encode` takes it.

        Args:
            input_ids: (B, T) Padded on the right.
            attention_mask: (B, T) 1 for tokens and vectors, 0 for padding.
            token_type_ids: (B, T) 0 and 1 for the two texts of a pair.
            num_tokens: How many ones the mask has, as far as that is known.
            input_vectors: What stands beside the texts (`mtop_batch.data.batches.pad_batch`); None for nothing.

        Raises:
            ConfigError: The model reads no vectors.
        """
        if input_vectors is None:
            return Text(input_ids, attention_mask, token_type_ids, num_tokens)
        if not self.vector_inputs:
            raise ConfigError("the model reads no vectors beside texts; leave input_vectors out")
        vectors, places = self.projected_inputs(input_vectors)
        return Text(input_ids, attention_mask, token_type_ids, num_tokens, vectors, places)

    def _add_encoder(self, backbone: PreTrainedModel) -> None:
        """Take the encoder over; a kind with several makes the others."""
        self.backbone = backbone

    @classmethod
    def check_encoder(cls, backbone: PreTrainedModel) -> None:
        """Refuse an encoder that `check_backbone` accepts but that this kind of model cannot work with.

        Raises:
            ConfigError: It cannot; the message says why.
        """
        del backbone

    @property
    def encoders(self) -> list[PreTrainedModel]:
        """All encoders of the model: one, unless every task has its own."""
        return [self.backbone]

    def encoder_of(self, task: str) -> PreTrainedModel:
        """The encoder that the task reads."""
        del task
        return self.backbone

    def fuse_layers(self) -> bool:
        """Run the encoder's layers as `encoder/fused` has them, on devices that can attend over packed texts.

        For inference with weights that stay as they are: until the model trains, or moves to another device or type.

        Returns:
            Whether the backbone is one of those whose layers can be fused; else nothing changes.
        """
        self._fused, self._fused_families = FusedLayers.of(self.backbone), {}
        return self._fused is not None

    def encode(
        self,
        prompts: Tensor,
        text: Text,
        groups: Sequence[int] | None = None,
        *,
        passes: Sequence[Pass] = (),
        at_context: bool = True,
        at_text: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Run the backbone over prompts and text (`mtop_batch.model.encoder.encode`), in the fastest way there is.

        Args:
            prompts: (S, E)
            text: Of B texts.
            groups: (S) The group of each prompt; None where all belong to the context.
            passes: How those that do not belong to it go through the encoder.
            at_context: Whether the outputs at the context, its prompts among it, are wanted.
            at_text: Whether those at the text are.

        Returns:
            (B, S, D) outputs at the prompts and (B, T, D) outputs at the text; those not wanted mean nothing, and there
            may be none of them.
        """
        groups = [0] * len(prompts) if groups is None else groups
        fused = None if torch.is_grad_enabled() else self._fused
        batch = None if fused is None else ragged_batch(self.backbone, text, groups.count(0))
        if fused is not None and batch is not None:
            return encode_fused(self.backbone, fused, prompts, text, batch, groups, passes, at_text=at_text)
        return encode(
            self.backbone,
            prompts,
            text.input_ids,
            text.attention_mask,
            text.token_type_ids,
            groups,
            passes=passes or None,
            at_context=at_context,
            num_tokens=text.num_tokens,
            vectors=text.vectors,
            places=text.places,
        )

    def encode_branches(self, context: Tensor, text: Text, branches: Sequence[Branch]) -> list[tuple[Tensor, Tensor]]:
        """Run the backbone for families of tasks (`mtop_batch.model.encoder.families`), in the fastest way there is.

        Args:
            context: (C, E) The prompts that the text sees.
            text: Of B texts.
            branches: What each family wants.

        Returns:
            For each branch what `encode` returns of the context's prompts, its own prompts, and the text.
        """
        fused = None if torch.is_grad_enabled() else self._fused
        batch = None if fused is None else ragged_batch(self.backbone, text, len(context))
        if fused is None or batch is None:
            return encode_branches(self.backbone, context, text, branches)
        for branch in branches:
            if branch.family is not None and branch.family not in self._fused_families:
                merged = branch.merged or merged_weights(self.backbone, branch.family)
                self._fused_families[branch.family] = fused.of_family(self.backbone, branch.family, merged)
        layers = [fused if branch.family is None else self._fused_families[branch.family] for branch in branches]
        return encode_branches_fused(self.backbone, layers, context, text, batch, branches)

    def merged_weights(self, family: FamilyLoRA | None) -> MergedWeights | None:
        """The weights of a family with its LoRA in them, kept while nothing of them changes.

        None where there is no family, or something may learn: then its LoRA is computed apart.
        """
        if family is None or self.training or torch.is_grad_enabled():
            return None
        weights = [layer.weight for layer in lora_layers(self.backbone, family.num_layers)]
        made_of = num_versions([*family.parameters(), *weights]), weights[0].dtype, weights[0].device
        kept = self._merged.get(family)
        if kept is None or kept[0] != made_of:
            kept = self._merged[family] = made_of, merged_weights(self.backbone, family)
        return kept[1]

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._forget_prepared()  # the model moves to another device or type
        return super()._apply(*args, **kwargs)

    def _forget_prepared(self) -> None:
        self._fused, self._fused_families, self._merged = None, {}, {}

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; training forgets what inference had prepared."""
        if mode:
            self._forget_prepared()
        return super().train(mode)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The backbone's table of input embeddings."""
        return word_embeddings(self.backbone)

    def get_input_embeddings(self) -> nn.Embedding:
        """The same, under the name that transformers uses."""
        return word_embeddings(self.backbone)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's table of input embeddings."""
        self.backbone.set_input_embeddings(value)

    def _init_weights(self, module: nn.Module) -> None:
        """Do nothing: `from_backbone` draws new parameters, checkpoints hold all others."""
