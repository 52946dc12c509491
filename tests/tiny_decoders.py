"""Tiny random decoders of several families, with biases and norms disturbed so that nothing is 0 or 1 by chance."""

import torch
from torch import Tensor, nn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
KINDS = ("llama", "mistral", "qwen2", "qwen2_sliding", "qwen3")
ALTERNATING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 8}


def decoder(kind: str = "llama", **changed) -> nn.Module:
    """A new model of a kind, the same weights every time."""
    import transformers as hf

    sizes = SIZES | changed
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = {
            "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**{"tie_word_embeddings": True} | sizes)),
            "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**sizes, sliding_window=None)),
            "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**sizes)),
            "qwen2_sliding": lambda: hf.Qwen2ForCausalLM(
                hf.Qwen2Config(**sizes, use_sliding_window=True, sliding_window=8, max_window_layers=2)
            ),
            "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**sizes, head_dim=8)),
            "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**sizes | ALTERNATING)),
            "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**sizes | ALTERNATING)),
        }[kind]()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) / 10)
    return model.eval()


def token_ids(n: int = 4, length: int = 12, seed: int = 1) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (n, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor], left: bool = False) -> dict[str, Tensor]:
    """Sequences (length,) of any lengths as a tokenizer pads them, with whatever token."""
    side = "left" if left else "right"
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7, padding_side=side)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True, padding_side=side)
    return {"input_ids": ids, "attention_mask": mask}


class LastToken(nn.Module):
    """A tiny Llama as a classifier of sequences: the logits of what comes next."""

    def __init__(self):
        super().__init__()
        self.llama = decoder()

    def forward(self, ids):
        return self.llama(input_ids=ids).logits[:, -1]
