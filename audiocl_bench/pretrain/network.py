"""The student, what is added to it while it learns, and a forward pass over any choice of its patches.

The student is the backbone's own class (`audiocl_bench.backbones.eat.EAT`), so what is exported is what was trained.
The pass here gives what `EAT.run` does, and two things more: patches may be left out, and every block's MLP output is
returned, which is what EAT's teacher predicts from (data2vec's layer results; spec/eat.md section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiocl_bench import seeding
from audiocl_bench.backbones import eat
from audiocl_bench.backbones.base import Attention, Options
from audiocl_bench.pretrain.masks import Visible
from audiocl_bench.pretrain.recipe import ModelConfig, ObjectiveConfig

_DECODER_EPS = 1e-5


@dataclass(frozen=True)
class Passed:
    """What a pass gives.

    Attributes:
        outputs: output of every block [R, 1 + V, D], class token first.
        results: MLP output of every block before its residual [R, 1 + V, D].
    """

    outputs: list[Tensor]
    results: list[Tensor]


def new_student(model: ModelConfig, seed: int) -> eat.EAT:
    """Make a student with random weights, all of them trainable.

    Linear layers and the class token are normal with standard deviation 0.02, as data2vec draws them; the patch
    projection is uniform within +-sqrt(6 / (256 + dim)); biases are 0 and norms 1.
    """

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith(".bias"):
            return torch.zeros(shape)
        if "norm" in name:
            return torch.ones(shape)
        generator = seeding.torch_generator(seed, "pretrain", "weights", name)
        if name.startswith("patch_embed"):
            bound = (6.0 / (eat.PATCH * eat.PATCH + shape[0])) ** 0.5
            return (torch.rand(shape, generator=generator) * 2 - 1) * bound
        return torch.randn(shape, generator=generator) * 0.02

    student = eat.build(model.network, eat.random_weights(model.network, draw), Options("student", "being trained"))
    student.requires_grad_(True)
    return student


def embed(network: eat.EAT, x: Tensor) -> Tensor:
    """Turn normalised log-mels [B, T, 128] into patches with positions [B, T/16 * 8, D], before the first norm."""
    # 16 x 16 patches do not overlap, so the convolution is one matrix product, which is far quicker on a CPU.
    clips, frames, _ = x.shape
    cells = x.reshape(clips, frames // eat.PATCH, eat.PATCH, eat.MEL_PATCHES, eat.PATCH).transpose(2, 3)
    cells = cells.reshape(clips, -1, eat.PATCH * eat.PATCH)
    patches = F.linear(cells, network.patch_embed.weight.flatten(1), network.patch_embed.bias)
    return patches + network.pos_embed[:, : patches.shape[1]]


def pick(patches: Tensor, visible: Visible) -> Tensor:
    """Take the listed patches: [B, N, D] and lists for R = B * C rows (C rows per clip) -> [R, V, D]."""
    clips, count, width = patches.shape
    rows, slots = visible.index.shape
    first = torch.arange(clips, device=patches.device).mul(count).repeat_interleave(rows // clips)
    flat = (visible.index + first[:, None]).reshape(-1)
    return patches.reshape(-1, width).index_select(0, flat).reshape(rows, slots, width)


def passed(network: eat.EAT, patches: Tensor, keys: Tensor | None) -> Passed:
    """Run the class token and patches [R, V, D] (see `embed`) through all blocks.

    Args:
        network: student or teacher.
        patches: patches with positions.
        keys: bool [R, V], patches that may be attended to; None means all. The class token always may.
    """
    tokens = network.pre_norm(torch.cat([network.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1))
    mask = None if keys is None else F.pad(keys, (1, 0), value=True)[:, None, None, :]
    outputs, results = [], []
    for block in network.blocks:
        middle = block.norm1(tokens + _attend(block.attn, tokens, mask))  # type: ignore[operator, arg-type]
        result = block.mlp(middle)  # type: ignore[operator]
        tokens = block.norm2(middle + result)  # type: ignore[operator]
        outputs.append(tokens)
        results.append(result)
    return Passed(outputs, results)


def _attend(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Do what `Attention.forward` does, with a mask over keys [R, 1, 1, N]."""
    query, key, value = (
        project(x).unflatten(2, (attention.num_heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if query.device.type == "cpu" and query.dtype != torch.float32:
        # On a CPU the backward pass of attention in bfloat16 is several times slower than in float32.
        with torch.autocast("cpu", enabled=False):
            mixed = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """Fill the masked cells: convolutions over the (time, mel) grid, each with LayerNorm and GELU, then a linear layer.

    Layers of equal width have a residual (spec/eat.md section 2). Cells that stand for padding are 0 before every
    convolution, as what lies beyond the grid is, so that a clip's padding does not change what is decoded.
    """

    def __init__(self, dim: int, objective: ObjectiveConfig) -> None:
        super().__init__()
        width, kernel = objective.decoder_dim, objective.decoder_kernel
        self.entry = nn.Identity() if width == dim else nn.Linear(dim, width)
        self.layers = nn.ModuleList(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=objective.decoder_groups)
            for _ in range(objective.decoder_layers)
        )
        self.proj = nn.Linear(width, dim)

    def forward(self, tokens: Tensor, visible: Visible, noise: Tensor, real: Tensor | None) -> Tensor:
        """Decode visible tokens to the whole grid, before the closing linear layer (`proj`).

        Args:
            tokens: the student's output for the listed patches [R, V, D], without the class token.
            visible: the lists.
            noise: what stands in masked cells [R, N, width of the decoder].
            real: bool [R, N], cells that hold real audio; None where all do.

        Returns:
            [R, N, width of the decoder].
        """
        rows, patches, width = noise.shape
        inner = self.entry(tokens)
        place = visible.place(patches)[:, :, None].expand(-1, -1, width)
        # One column more takes what unused slots hold.
        grid = F.pad(noise.to(inner.dtype), (0, 0, 0, 1)).scatter(1, place, inner)[:, :patches]
        keep = None if real is None else real[:, :, None].to(grid.dtype)
        for layer in self.layers:
            grid = grid if keep is None else grid * keep
            image = grid.reshape(rows, -1, eat.MEL_PATCHES, width).permute(0, 3, 1, 2)
            image = layer(image).permute(0, 2, 3, 1).reshape(rows, patches, width)
            grid = grid + F.gelu(F.layer_norm(image, (width,), eps=_DECODER_EPS))
        return grid


class Distiller(nn.Module):
    """Linear heads from student layers to teacher layers, per time patch and, from the class token, per clip."""

    def __init__(self, dim: int, objective: ObjectiveConfig, teacher_dim: int) -> None:
        super().__init__()
        self.student_layers, self.teacher_layers = objective.student_layers, objective.teacher_layers
        self.frames = nn.ModuleList(nn.Linear(dim, teacher_dim) for _ in self.teacher_layers)
        self.clip = nn.Linear(dim, 2 * teacher_dim * len(self.teacher_layers))

    def class_statistics(self, token: Tensor) -> Tensor:
        """Predict mean and standard deviation over time from the class token: [B, D] -> [B, layers, 2, teacher dim]."""
        return self.clip(token).unflatten(1, (len(self.teacher_layers), 2, -1))


class Learner(nn.Module):
    """The student and all that is trained with it and thrown away afterwards.

    Attributes:
        student: the network.
        decoder: EAT's decoder; None where no step takes EAT's objective.
        distiller: the heads of distillation; None where no step distils.
    """

    def __init__(self, model: ModelConfig, objective: ObjectiveConfig, *, seed: int, teacher_dim: int | None) -> None:
        super().__init__()
        self.student = new_student(model, seed)
        self.decoder = Decoder(model.dim, objective) if objective.eat_share > 0 else None
        distils = objective.distils > 0 and teacher_dim is not None
        self.distiller = Distiller(model.dim, objective, teacher_dim or 0) if distils else None
        extras = [("decoder", self.decoder), ("distiller", self.distiller)]
        for name, parameter in ((f"{a}.{b}", p) for a, part in extras if part for b, p in part.named_parameters()):
            _draw_like_torch(parameter, seed, name)

    def groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return AdamW's two groups: what decays, and what does not (norms, biases, the class token)."""
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            (plain if parameter.ndim < 2 or name.endswith("cls_token") else decayed).append(parameter)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _draw_like_torch(parameter: nn.Parameter, seed: int, name: str) -> None:
    """Set weights to U(+-1/sqrt(inputs)), PyTorch's own default, from a generator of their own; biases to 0."""
    with torch.no_grad():
        if parameter.ndim < 2:
            parameter.zero_()
            return
        generator = seeding.torch_generator(seed, "pretrain", "weights", name)
        bound = parameter[0].numel() ** -0.5
        parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * bound)


def follow(teacher: Sequence[Tensor], student: Sequence[Tensor], decay: float) -> None:
    """Move an exponential moving average in place: teacher = decay * teacher + (1 - decay) * student."""
    with torch.no_grad():
        torch._foreach_lerp_(list(teacher), list(student), 1.0 - decay)
