"""Small but whole models: a residual network, a GPT-like transformer and a GroupNorm U-Net."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, c_in, c, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        same = stride == 1 and c_in == c
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(c_in, c, 1, stride), nn.BatchNorm2d(c))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.short(x)).relu()


class ResNet(nn.Module):
    """BatchNorm2d throughout, an InstanceNorm2d stem and a BatchNorm1d head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
        self.body = nn.Sequential(Block(8, 8), Block(8, 16, 2), Block(16, 16), Block(16, 32, 2))
        self.head = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Attention(nn.Module):
    """Causal self-attention with RMS-normalized queries and keys."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.q_norm, self.k_norm = nn.RMSNorm(d // heads), nn.RMSNorm(d // heads, eps=1e-6)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class GPT(nn.Module):
    """Pre-norm LayerNorm blocks with weights tied between embedding and head."""

    def __init__(self, words=50, d=32, heads=4, depth=3):
        super().__init__()
        self.words, self.places = nn.Embedding(words, d), nn.Embedding(64, d)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln1": nn.LayerNorm(d),
                    "attend": Attention(d, heads),
                    "ln2": nn.LayerNorm(d, bias=False),
                    "mlp": nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)),
                }
            )
            for _ in range(depth)
        )
        self.last, self.head = nn.LayerNorm(d), nn.Linear(d, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = x + block["attend"](block["ln1"](x))
            x = x + block["mlp"](block["ln2"](x))
        return self.head(self.last(x))


class UNet(nn.Module):
    """Two levels, GroupNorm after every convolution, channels_last inside."""

    def __init__(self, c=8):
        super().__init__()

        def stage(a, b):
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.SiLU())

        self.down1, self.down2, self.middle = stage(1, c), stage(c, 2 * c), stage(2 * c, 4 * c)
        self.up2, self.up1, self.out = stage(6 * c, 2 * c), stage(3 * c, c), nn.Conv2d(c, 2, 1)

    def forward(self, x):
        a = self.down1(x.contiguous(memory_format=torch.channels_last))
        b = self.down2(nn.functional.max_pool2d(a, 2))
        m = self.middle(nn.functional.max_pool2d(b, 2))
        b = self.up2(torch.cat([nn.functional.interpolate(m, scale_factor=2), b], 1))
        return self.out(self.up1(torch.cat([nn.functional.interpolate(b, scale_factor=2), a], 1)))


def models():
    """Each model with a batch for it."""
    torch.manual_seed(0)
    return {
        "ResNet": (ResNet(), torch.randn(8, 3, 16, 16) + 1),
        "GPT": (GPT(), torch.randint(0, 50, (4, 24))),
        "UNet": (UNet(), torch.randn(2, 1, 16, 16) + 1),
    }


def outputs_and_gradients(model, x):
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}
