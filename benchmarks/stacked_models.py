"""Many models of one shape trained side by side: their parameters are stacked, so one product serves all of them.

A small encoder leaves most of a large GPU idle. Sixteen MiniLM, each with a seed, rates and batches of its own, train
here in about a minute on an H100, and every step is one CUDA graph. For trying recipes only: encoders of BERT's kind,
tasks that are answered by yes or no, and no more of the package's training than a recipe needs.

K models, B texts of a batch, L tokens, S positions (tokens and prompts), D width, T tasks, P prompts of a task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

Method = Literal["mtop", "mt-dnn"]
Views = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PROMPTS = 2
_GRAPH_WARM_UP = 3
_EPSILON = 1e-12  # of BERT's layer norms


def views(flat: Tensor, shapes: Shapes, gradient: Tensor | None = None) -> Views:
    """Named parts of flat parameters (K, ..., N); with a buffer for gradients they are leaves that write into it."""
    parts, start = {}, 0
    for name, shape in shapes.items():
        end = start + math.prod(shape)
        part = flat[..., start:end].unflatten(-1, shape).detach()  # type: ignore[no-untyped-call]
        if gradient is not None:
            part.requires_grad_(True)
            part.grad = gradient[..., start:end].unflatten(-1, shape)  # type: ignore[no-untyped-call]
        parts[name], start = part, end
    return parts


def by_name(shapes: Shapes, value: Callable[[str], float]) -> Tensor:
    """(N,) one value for all numbers of a named part."""
    return torch.cat([torch.full((math.prod(shape),), value(name)) for name, shape in shapes.items()]).to(DEVICE)


def update(
    value: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    rate: Tensor,
    decay: Tensor,
    count: Tensor,
    on: Tensor,
) -> None:
    """A step of AdamW in place, where `on` is true; `count` says how many steps there were, this one included."""
    mean.copy_(torch.where(on, mean * 0.9 + gradient * 0.1, mean))
    square.copy_(torch.where(on, square * 0.999 + gradient * gradient * 0.001, square))
    step = (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
    value.sub_(on * rate * (step + decay * value))


if DEVICE.type == "cuda":
    update = torch.compile(update, dynamic=True)


class Parameters:
    """Flat parameters of K models, with gradients, the moments of AdamW, and an average over steps (EMA).

    Args:
        value: (K, ..., N), taken over.
        shapes: Of the named parts of the last dimension.
        rate: Peak rates, to be broadcast to `value`.
    """

    def __init__(self, value: Tensor, shapes: Shapes, rate: Tensor) -> None:
        self.value, self.shapes, self.rate = value, shapes, rate
        self.gradient, self.mean, self.square = (torch.zeros_like(value) for _ in range(3))
        self.average = value.clone()
        self.count = torch.zeros(*value.shape[:-1], 1, device=DEVICE)
        self.decay = by_name(shapes, lambda name: 0.01 if len(shapes[name]) == 2 and name != "prompts" else 0.0)
        self.parts = views(value, shapes, self.gradient)

    def step(self, factor: Tensor, clip: Tensor, on: Tensor) -> None:
        """One step of the models (and tasks) that `on` selects; all three can be broadcast to (K, ..., 1)."""
        self.count += on
        rate = self.rate * factor
        update(self.value, self.gradient * clip, self.mean, self.square, rate, self.decay, self.count.clamp(min=1), on)

    def add_to_average(self, share: Tensor) -> None:
        """Move the average towards the parameters by this share."""
        self.average.lerp_(self.value, share)

    def forget(self) -> None:
        """Start the optimiser and the average anew."""
        for state in (self.mean, self.square, self.count):
            state.zero_()
        self.average.copy_(self.value)


def clip_factor(squared_norm: Tensor) -> Tensor:
    """(K,) what gradients are multiplied with, so that no model's norm is above 1."""
    return (1 / (squared_norm.sqrt() + 1e-6)).clamp(max=1)


def linear(inputs: Tensor, parts: Views, name: str) -> Tensor:
    """(K, R, D) -> (K, R, E), each model with its own weights."""
    return torch.baddbmm(parts[f"{name}.bias"][:, None], inputs, parts[f"{name}.weight"].transpose(1, 2))


def layer_norm(inputs: Tensor, parts: Views, name: str) -> Tensor:
    """(K, R, D) -> (K, R, D)."""
    plain = functional.layer_norm(inputs, inputs.shape[-1:], eps=_EPSILON)
    return plain * parts[f"{name}.weight"][:, None] + parts[f"{name}.bias"][:, None]


def text_mask(lengths: Tensor, num_tokens: int, groups: Sequence[int] = ()) -> Tensor:
    """(R,) -> (R, 1, S, S): all see the text, and prompts also those of their group; `groups` has their sizes."""
    size = num_tokens + sum(groups)
    sees = (torch.arange(size, device=DEVICE) < lengths[:, None])[:, None, None].expand(-1, 1, size, size)
    if not groups:
        return sees
    sees, start = sees.clone(), num_tokens
    for group in groups:
        sees[:, :, start : start + group, start : start + group] = True
        start += group
    return sees


class Encoder:
    """K encoders of BERT's kind. Word embeddings are shared and stay as pretrained.

    Args:
        backbone: As `mtop_batch.model.encoder.backbone.load_backbone` returns it.
        num_tokens: Most tokens of a text.
    """

    def __init__(self, backbone: PreTrainedModel, num_tokens: int) -> None:
        config = backbone.config
        self.num_layers, self.num_heads, self.width = (
            int(getattr(config, key)) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        state = {name: value.detach().float() for name, value in backbone.state_dict().items()}
        self.words = state["embeddings.word_embeddings.weight"].to(DEVICE)
        tensors = self._named(state, num_tokens)
        self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        self.pretrained = torch.cat([value.flatten() for value in tensors.values()]).to(DEVICE)

    def _named(self, state: Mapping[str, Tensor], num_tokens: int) -> dict[str, Tensor]:
        """The parameters under names of our own, queries, keys and values as one."""
        tensors = {
            "positions": state["embeddings.position_embeddings.weight"][:num_tokens],
            "type": state["embeddings.token_type_embeddings.weight"][0],
        }
        ours = {"out": "attention.output.dense", "norm_1": "attention.output.LayerNorm", "up": "intermediate.dense"}
        ours |= {"down": "output.dense", "norm_2": "output.LayerNorm"}
        for kind in ("weight", "bias"):
            tensors[f"norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
            for layer in range(self.num_layers):
                at = f"encoder.layer.{layer}."
                parts = [state[f"{at}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
                tensors[f"{layer}.qkv.{kind}"] = torch.cat(parts)
                for name, theirs in ours.items():
                    tensors[f"{layer}.{name}.{kind}"] = state[f"{at}{theirs}.{kind}"]
        return tensors

    def __call__(
        self, parts: Views, tokens: Tensor, mask: Tensor, dropout: float, prompts: Tensor | None = None
    ) -> Tensor:
        """Tokens (K, B, L), a mask (K * B, 1, S, S) and prompts (K, B, S - L, D) -> (K, B, S, D)."""
        hidden = self.words[tokens] + parts["positions"][:, None, : tokens.shape[2]]
        if prompts is not None:  # at the position of the first token
            hidden = torch.cat([hidden, prompts + parts["positions"][:, None, :1]], 2)
        num_models, batch, size, _ = hidden.shape
        hidden = layer_norm((hidden + parts["type"][:, None, None]).flatten(1, 2), parts, "norm")
        hidden = functional.dropout(hidden, dropout, dropout > 0)
        split = (num_models * batch, size, 3, self.num_heads, self.width // self.num_heads)
        for layer in range(self.num_layers):
            qkv = linear(hidden, parts, f"{layer}.qkv").view(split).permute(2, 0, 3, 1, 4)
            query, key, value = qkv.unbind(0)
            seen = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
            seen = seen.transpose(1, 2).reshape(num_models, batch * size, self.width)
            seen = functional.dropout(linear(seen, parts, f"{layer}.out"), dropout, dropout > 0)
            hidden = layer_norm(hidden + seen, parts, f"{layer}.norm_1")
            inner = linear(functional.gelu(linear(hidden, parts, f"{layer}.up")), parts, f"{layer}.down")
            hidden = layer_norm(hidden + functional.dropout(inner, dropout, dropout > 0), parts, f"{layer}.norm_2")
        return hidden.view(num_models, batch, size, self.width)


@dataclass(frozen=True)
class Arm:
    """One model: what tells it from those beside it.

    Args:
        name: Of the recipe; models that share it differ in their seeds.
        seed: Of its draws, batches and their order.
        rate: Peak rate of the encoder.
        head_rate: Peak rate of prompts, poolers and heads.
        layer_decay: Each layer's rate is that of the layer above times this.
        label_smoothing: Share of the label that is spread over yes and no.
        hidden_tokens: Share of the tokens that are replaced by [MASK] in training.
        soft_weight: Of the loss of soft labels.
        start: Parameters of the encoder; as pretrained if None.
        task: The only one to learn; all if None.
    """

    name: str
    seed: int
    rate: float = 5e-5
    head_rate: float = 5e-4
    layer_decay: float = 1.0
    label_smoothing: float = 0.0
    hidden_tokens: float = 0.0
    soft_weight: float = 0.0
    start: Tensor | None = field(default=None, repr=False)
    task: int | None = None


class StackedModels:
    """K models of one method for T tasks that are answered by yes or no.

    `shared` holds each model's encoder (with MT-DNN's pooler), (K, N); `own` what tasks have of their own, (K, T, M).
    """

    def __init__(self, method: Method, arms: Sequence[Arm], num_tasks: int, encoder: Encoder) -> None:
        self.method, self.arms, self.num_tasks, self.encoder = method, arms, num_tasks, encoder
        width = encoder.width
        pooler = {"pooler.weight": (width, width), "pooler.bias": (width,)}
        if method == "mtop":
            own: Shapes = {"prompts": (PROMPTS, width), **pooler, "head.weight": (2, width)}
        else:
            own = {"head.weight": (2, width), "head.bias": (2,)}
        extra: Shapes = {} if method == "mtop" else pooler
        drawn, added = [], []
        for arm in arms:
            generator = torch.Generator().manual_seed(1000 + arm.seed)
            drawn.append(torch.stack([_draw(own, generator) for _ in range(num_tasks)]))
            start = encoder.pretrained if arm.start is None else arm.start
            added.append(torch.cat([start, _draw(extra, generator).to(DEVICE)]))
        shapes = {**encoder.shapes, **extra}
        rates = torch.stack([by_name(shapes, self._rate(arm)) for arm in arms])
        self.shared = Parameters(torch.stack(added), shapes, rates)
        head_rates = torch.tensor([arm.head_rate for arm in arms], device=DEVICE)[:, None, None]
        self.own = Parameters(torch.stack(drawn).to(DEVICE), own, head_rates)

    def _rate(self, arm: Arm) -> Callable[[str], float]:
        def of(name: str) -> float:
            first = name.split(".")[0]
            if first == "pooler":
                return arm.head_rate
            layer = int(first) + 1 if first.isdigit() else 0
            return arm.rate * arm.layer_decay ** (self.encoder.num_layers - layer)

        return of

    def one_task(
        self, shared: Views, own: Views, tokens: Tensor, lengths: Tensor, task: Tensor, dropout: float
    ) -> Tensor:
        """Each model's task (K,) on texts of its own, (K, B, L) -> (K, B, 2)."""
        models = torch.arange(len(self.arms), device=DEVICE)
        part = {name: value[models, task] for name, value in own.items()}
        num_tokens = tokens.shape[2]
        if self.method == "mtop":
            prompts = part["prompts"][:, None].expand(-1, tokens.shape[1], -1, -1)
            mask = text_mask(lengths.flatten(), num_tokens, [PROMPTS])
            read = self.encoder(shared, tokens, mask, dropout, prompts)[:, :, num_tokens:].mean(2)
            return torch.bmm(torch.tanh(linear(read, part, "pooler")), part["head.weight"].transpose(1, 2))
        return linear(self._pooled(shared, tokens, lengths, dropout), part, "head")

    def all_tasks(self, shared: Views, own: Views, tokens: Tensor, lengths: Tensor, dropout: float) -> Tensor:
        """All tasks on texts (K, B, L) -> (K, B, T, 2)."""
        num_tokens = tokens.shape[2]
        if self.method == "mt-dnn":
            hidden = self._pooled(shared, tokens, lengths, dropout)
            return torch.einsum("kbd,ktcd->kbtc", hidden, own["head.weight"]) + own["head.bias"][:, None]
        prompts = own["prompts"].flatten(1, 2)[:, None].expand(-1, tokens.shape[1], -1, -1)
        mask = text_mask(lengths.flatten(), num_tokens, [PROMPTS] * self.num_tasks)
        read = self.encoder(shared, tokens, mask, dropout, prompts)[:, :, num_tokens:]
        read = read.view(*read.shape[:2], self.num_tasks, PROMPTS, -1).mean(3).transpose(1, 2)  # (K, T, B, D)
        pooled = torch.matmul(read, own["pooler.weight"].transpose(2, 3)) + own["pooler.bias"][:, :, None]
        return torch.matmul(torch.tanh(pooled), own["head.weight"].transpose(2, 3)).transpose(1, 2)

    def _pooled(self, shared: Views, tokens: Tensor, lengths: Tensor, dropout: float) -> Tensor:
        """What MT-DNN's heads read: the first token, through the pooler of all tasks."""
        first = self.encoder(shared, tokens, text_mask(lengths.flatten(), tokens.shape[2]), dropout)[:, :, 0]
        return functional.dropout(torch.tanh(linear(first, shared, "pooler")), dropout, dropout > 0)

    @torch.no_grad()
    def says_yes(self, tokens: Tensor, lengths: Tensor, *, average: bool = False, batch: int = 256) -> Tensor:
        """Texts (R, L) -> (K, R, T), probabilities; of the averages over steps if wanted."""
        shared, own = (views(each.average if average else each.value, each.shapes) for each in (self.shared, self.own))
        found = []
        for part, length in zip(tokens.split(batch), lengths.split(batch), strict=True):  # type: ignore[no-untyped-call]
            texts, ends = (value.expand(len(self.arms), *value.shape) for value in (part, length))
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
                logits = self.all_tasks(shared, own, texts, ends, dropout=0.0)
            found.append(logits.float().softmax(-1)[..., 1])
        return torch.cat(found, 1)


def repeat(step: Callable[[], None], times: int) -> None:
    """Run a step that often; on a GPU the first runs warm up a CUDA graph, which is the others."""
    if DEVICE.type == "cpu":
        for _ in range(times):
            step()
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_GRAPH_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(times - _GRAPH_WARM_UP):
        graph.replay()
    torch.cuda.synchronize()


def _draw(shapes: Shapes, generator: torch.Generator) -> Tensor:
    """New parameters, as the package draws them."""
    parts = [torch.zeros(0)]
    for name, shape in shapes.items():
        part = torch.zeros(shape)
        if name == "prompts":
            nn.init.trunc_normal_(part, std=0.02, a=-0.04, b=0.04, generator=generator)
        elif len(shape) == 2:
            nn.init.xavier_uniform_(part, generator=generator)
        parts.append(part.flatten())
    return torch.cat(parts)
