"""Tiny random models of many families, from configs alone: what runs on each, and how many of its parts there are.

The counts are written by hand, from the sizes below: a structure that is found in some of the places only shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
GPT = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1}
BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
PICTURE = {
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SOUND = SIZES | {
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
ROUTED = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}

Where = tuple[str, int]  # a regular expression for the paths of some modules, and how many there are


@dataclass(frozen=True)
class Family:
    """How to build a model, what it runs on, and where its parts lie."""

    build: Callable[[], nn.Module]
    inputs: str
    attention: Where
    mlp: Where
    block: Where
    experts: Where = ("", 0)
    whole_mlp: Where | None = None  # where it is not `mlp`: a whole mixture of experts


def hf(name: str, kind: str, *sizes: dict[str, Any], config: str | None = None, **more: Any) -> Callable[[], nn.Module]:
    """A function that builds transformers' model of a name from a config of these sizes."""

    def build() -> nn.Module:
        import transformers

        settings: dict[str, Any] = {}
        for some in (*sizes, more):
            settings |= some
        made = getattr(transformers, config or f"{name}Config")(**settings)
        return getattr(transformers, f"{name}{kind}")(made)

    return build


def llava() -> nn.Module:
    """A picture's patches among the tokens of a Llama."""
    import transformers

    vision = transformers.CLIPVisionConfig(**PICTURE, projection_dim=32)
    text = transformers.LlamaConfig(**GROUPED)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, image_token_id=3, vision_feature_layer=-1
    )
    return transformers.LlavaForConditionalGeneration(config)


def clip(name: str) -> Callable[[], nn.Module]:
    """Both towers of CLIP, or of SigLIP."""

    def build() -> nn.Module:
        import transformers

        text = SIZES | {"projection_size": 32, "projection_dim": 32}
        config = getattr(transformers, f"{name}Config")(
            text_config=text, vision_config=PICTURE | {"projection_dim": 32}
        )
        return getattr(transformers, f"{name}Model")(config)

    return build


def t5gemma() -> nn.Module:
    """An encoder and a decoder, each with a config of its own."""
    import transformers

    side = WIDE | {"layer_types": ["full_attention"] * 3, "query_pre_attn_scalar": 8}
    sides = [transformers.T5GemmaModuleConfig(**side) for _ in range(2)]
    return transformers.T5GemmaForConditionalGeneration(
        transformers.T5GemmaConfig(encoder=sides[0], decoder=sides[1], vocab_size=64)
    )


def lora() -> nn.Module:
    """A Llama with low-rank adapters on the first block's queries, built by hand as peft names them."""
    model = hf("Llama", "ForCausalLM", GROUPED)()
    attention = model.model.layers[0].self_attn
    attention.q_proj = LoraLinear(attention.q_proj)
    return model


class LoraLinear(nn.Module):
    """base_layer(x) + B A x, with the modules named as peft names them."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(16, 8, 3, 4, 32, 48, num_classes=5)


def torchvision_swin() -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 32, [2, 2], [4, 4], [2, 2], mlp_ratio=1.5, num_classes=5, stochastic_depth_prob=0.0)


ATT, MLP, BLOCK = (r"\.self_attn$", 3), (r"\.mlp$", 3), (r"^model\.layers\.\d+$", 3)
LLAMA = ("ids", ATT, MLP, BLOCK)
BERT = ("ids", (r"\.attention\.self$", 3), (r"\.intermediate$", 3), (r"encoder\.layer\.\d+$", 3))
MOE = ("ids", ATT, ("", 0), BLOCK, (r"\.experts$", 3), MLP)
VIT = ("pixels", (r"\.attention$", 3), MLP, (r"layers?\.\d+$", 3))


def gpt(path: str, attention: str = r"\.attn$", mlp: str = r"\.mlp$") -> tuple[str, Where, Where, Where]:
    return "ids", (attention, 3), (mlp, 3), (rf"^{path}\.\d+$", 3)


# fmt: off
FAMILIES: dict[str, Family] = {
    # decoders
    "llama": Family(hf("Llama", "ForCausalLM", GROUPED), *LLAMA),
    "llama-tied": Family(hf("Llama", "ForCausalLM", GROUPED, tie_word_embeddings=True), *LLAMA),
    "llama-mha-bias": Family(hf("Llama", "ForCausalLM", SIZES, attention_bias=True, mlp_bias=True), *LLAMA),
    "mistral": Family(hf("Mistral", "ForCausalLM", GROUPED, sliding_window=8), *LLAMA),
    "qwen2": Family(hf("Qwen2", "ForCausalLM", GROUPED), *LLAMA),
    "qwen3": Family(hf("Qwen3", "ForCausalLM", WIDE), *LLAMA),
    "gemma": Family(hf("Gemma", "ForCausalLM", WIDE), *LLAMA),
    "gemma2": Family(hf("Gemma2", "ForCausalLM", WIDE, MIXED), *LLAMA),
    "gemma3": Family(hf("Gemma3", "ForCausalLM", WIDE, MIXED, config="Gemma3TextConfig"), *LLAMA),
    "gemma3n": Family(
        hf("Gemma3n", "ForCausalLM", WIDE, MIXED, config="Gemma3nTextConfig", hidden_size_per_layer_input=8,
           vocab_size_per_layer_input=64, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0] * 3,
           laurel_rank=4), *LLAMA),
    "phi": Family(hf("Phi", "ForCausalLM", SIZES), *LLAMA),
    "phi3": Family(hf("Phi3", "ForCausalLM", GROUPED), *LLAMA),
    "stablelm": Family(hf("StableLm", "ForCausalLM", GROUPED), *LLAMA),
    "stablelm-qk-norm": Family(hf("StableLm", "ForCausalLM", SIZES, num_key_value_heads=4, qk_layernorm=True), *LLAMA),
    "olmo": Family(hf("Olmo", "ForCausalLM", GROUPED), *LLAMA),
    "olmo2": Family(hf("Olmo2", "ForCausalLM", GROUPED), *LLAMA),
    "olmo3": Family(hf("Olmo3", "ForCausalLM", GROUPED, MIXED), *LLAMA),
    "gpt2": Family(hf("GPT2", "LMHeadModel", GPT), *gpt(r"transformer\.h")),
    "gpt-neo": Family(
        hf("GPTNeo", "ForCausalLM", vocab_size=64, max_position_embeddings=64, hidden_size=32, num_layers=3,
           num_heads=4, attention_types=[[["global", "local", "global"], 1]], intermediate_size=48, bos_token_id=1),
        *gpt(r"transformer\.h", r"\.attn\.attention$")),
    "gpt-neox": Family(hf("GPTNeoX", "ForCausalLM", SIZES), *gpt(r"gpt_neox\.layers", r"\.attention$")),
    "gpt-j": Family(hf("GPTJ", "ForCausalLM", GPT, rotary_dim=4), *gpt(r"transformer\.h")),
    "codegen": Family(hf("CodeGen", "ForCausalLM", GPT, rotary_dim=4, n_ctx=64), *gpt(r"transformer\.h")),
    "gpt-bigcode": Family(hf("GPTBigCode", "ForCausalLM", GPT, multi_query=True), *gpt(r"transformer\.h")),
    "bloom": Family(
        hf("Bloom", "ForCausalLM", vocab_size=64, hidden_size=32, n_layer=3, n_head=4),
        *gpt(r"transformer\.h", r"\.self_attention$")),
    "falcon-mqa": Family(
        hf("Falcon", "ForCausalLM", SIZES, multi_query=True, ffn_hidden_size=48),
        *gpt(r"transformer\.h", r"\.self_attention$")),
    "falcon-new": Family(
        hf("Falcon", "ForCausalLM", SIZES, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=48),
        *gpt(r"transformer\.h", r"\.self_attention$")),
    "opt": Family(
        hf("OPT", "ForCausalLM", SIZES, ffn_dim=48, word_embed_proj_dim=32),
        "ids", ATT, (r"\.fc1$", 3), (r"decoder\.layers\.\d+$", 3)),
    "mpt": Family(
        hf("Mpt", "ForCausalLM", vocab_size=64, d_model=32, n_heads=4, n_layers=3, max_seq_len=64, expansion_ratio=2),
        *gpt(r"transformer\.blocks", r"\.attn$", r"\.ffn$")),
    "cohere": Family(hf("Cohere", "ForCausalLM", GROUPED), *LLAMA),
    "cohere2": Family(hf("Cohere2", "ForCausalLM", GROUPED, MIXED), *LLAMA),
    "diffllama": Family(hf("DiffLlama", "ForCausalLM", GROUPED), *LLAMA),
    "diffllama-two-pairs": Family(
        hf("DiffLlama", "ForCausalLM", SIZES | {"num_attention_heads": 8, "num_key_value_heads": 4}), *LLAMA),
    "bitnet": Family(hf("BitNet", "ForCausalLM", GROUPED), *LLAMA),
    "granite": Family(hf("Granite", "ForCausalLM", GROUPED), *LLAMA),
    "smollm3": Family(hf("SmolLM3", "ForCausalLM", GROUPED), *LLAMA),
    "glm": Family(hf("Glm", "ForCausalLM", WIDE), *LLAMA),
    "glm4": Family(hf("Glm4", "ForCausalLM", WIDE), *LLAMA),
    "qwen3-next": Family(
        hf("Qwen3Next", "ForCausalLM", WIDE, ROUTED, num_experts=4, moe_intermediate_size=16,
           shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2,
           linear_key_head_dim=8, linear_value_head_dim=8, mlp_only_layers=[0],
           layer_types=["linear_attention", "full_attention", "linear_attention"]),
        "ids", (r"\.self_attn$", 1), (r"(layers\.0\.mlp|shared_expert)$", 3), BLOCK, (r"\.experts$", 2), MLP),
    "starcoder2": Family(hf("Starcoder2", "ForCausalLM", GROUPED), *LLAMA),
    "nemotron": Family(hf("Nemotron", "ForCausalLM", GROUPED), *LLAMA),
    "persimmon": Family(hf("Persimmon", "ForCausalLM", SIZES), *LLAMA),
    "mqa-llama": Family(hf("Llama", "ForCausalLM", SIZES, num_key_value_heads=1), *LLAMA),
    "mixtral": Family(
        hf("Mixtral", "ForCausalLM", GROUPED, ROUTED, num_local_experts=4, sliding_window=None), *MOE),
    "qwen3-moe": Family(
        hf("Qwen3Moe", "ForCausalLM", WIDE, ROUTED, num_experts=4, moe_intermediate_size=16, mlp_only_layers=[0]),
        "ids", ATT, (r"layers\.0\.mlp$", 1), BLOCK, (r"\.experts$", 2), MLP),
    "qwen2-moe": Family(
        hf("Qwen2Moe", "ForCausalLM", GROUPED, ROUTED, num_experts=4, moe_intermediate_size=16,
           shared_expert_intermediate_size=16),
        "ids", ATT, (r"\.shared_expert$", 3), BLOCK, (r"\.experts$", 3), MLP),
    "gpt-oss": Family(hf("GptOss", "ForCausalLM", WIDE, MIXED, ROUTED, num_local_experts=4), *MOE),
    "deepseek-v3": Family(
        hf("DeepseekV3", "ForCausalLM", SIZES, num_key_value_heads=4, num_experts_per_tok=2, n_routed_experts=4,
           moe_intermediate_size=16, n_group=1, topk_group=1, first_k_dense_replace=1, n_shared_experts=1,
           q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8),
        "ids", ATT, (r"(layers\.0\.mlp|shared_experts)$", 3), BLOCK, (r"\.experts$", 2), MLP),
    "olmoe": Family(hf("Olmoe", "ForCausalLM", GROUPED, ROUTED, num_experts=4), *MOE),
    "phimoe": Family(hf("Phimoe", "ForCausalLM", GROUPED, ROUTED, num_local_experts=4, sliding_window=8), *MOE),
    "jamba": Family(
        hf("Jamba", "ForCausalLM", GROUPED, ROUTED, num_experts=4, use_mamba_kernels=False, mamba_d_state=4,
           mamba_d_conv=2, mamba_dt_rank=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
           expert_layer_offset=1),
        "ids", (r"\.self_attn$", 1), (r"layers\.[02]\.feed_forward$", 2), BLOCK, (r"\.experts$", 1),
        (r"\.feed_forward$", 3)),
    "bamba": Family(
        hf("Bamba", "ForCausalLM", GROUPED, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=1,
           mamba_d_state=4, mamba_chunk_size=8),
        "ids", (r"\.self_attn$", 1), (r"\.feed_forward$", 3), BLOCK),
    "mamba": Family(
        hf("Mamba", "ForCausalLM", SIZES, state_size=4), "ids", ("", 0), ("", 0), (r"backbone\.layers\.\d+$", 3)),
    "lora": Family(lora, *LLAMA),
    # encoders
    "bert": Family(hf("Bert", "ForMaskedLM", SIZES), *BERT),
    "bert-classifier": Family(hf("Bert", "ForSequenceClassification", SIZES), *BERT),
    "roberta": Family(hf("Roberta", "ForMaskedLM", SIZES), *BERT),
    "xlm-roberta": Family(hf("XLMRoberta", "ForMaskedLM", SIZES), *BERT),
    "electra": Family(hf("Electra", "ForPreTraining", SIZES, embedding_size=16), *BERT),
    "distilbert": Family(
        hf("DistilBert", "ForMaskedLM", vocab_size=64, dim=32, hidden_dim=48, n_layers=3, n_heads=4,
           max_position_embeddings=64),
        "ids", (r"\.attention$", 3), (r"\.ffn$", 3), (r"transformer\.layer\.\d+$", 3)),
    "albert": Family(
        hf("Albert", "ForMaskedLM", SIZES, embedding_size=16), "ids", (r"\.attention$", 1), (r"\.ffn$", 1), ("", 0)),
    "deberta-v2": Family(
        hf("DebertaV2", "ForMaskedLM", SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"]), *BERT),
    "mpnet": Family(
        hf("MPNet", "ForMaskedLM", SIZES), "ids", (r"\.attention\.attn$", 3), BERT[2], BERT[3]),
    "modernbert": Family(
        hf("ModernBert", "ForMaskedLM", SIZES, cls_token_id=1, sep_token_id=2, local_attention=8),
        "ids", (r"\.attn$", 3), MLP, BLOCK),
    "layoutlmv3": Family(
        hf("LayoutLMv3", "Model", SIZES, visual_embed=False, coordinate_size=6, shape_size=4),
        *BERT),
    # encoder-decoders
    "t5": Family(
        hf("T5", "ForConditionalGeneration", vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4,
           decoder_start_token_id=0),
        "seq2seq", (r"(SelfAttention|EncDecAttention)$", 9), (r"DenseReluDense$", 6), (r"\.block\.\d+$", 6)),
    "t5-gated": Family(
        hf("T5", "ForConditionalGeneration", vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4,
           decoder_start_token_id=0, feed_forward_proj="gated-gelu"),
        "seq2seq", (r"(SelfAttention|EncDecAttention)$", 9), (r"DenseReluDense$", 6), (r"\.block\.\d+$", 6)),
    "bart": Family(
        hf("Bart", "ForConditionalGeneration", BART),
        "seq2seq", (r"(self|encoder)_attn$", 9), (r"\.fc1$", 6), (r"coder\.layers\.\d+$", 6)),
    "marian": Family(
        hf("Marian", "MTModel", BART),
        "seq2seq", (r"(self|encoder)_attn$", 9), (r"\.fc1$", 6), (r"coder\.layers\.\d+$", 6)),
    "pegasus": Family(
        hf("Pegasus", "ForConditionalGeneration", BART),
        "seq2seq", (r"(self|encoder)_attn$", 9), (r"\.fc1$", 6), (r"coder\.layers\.\d+$", 6)),
    "t5gemma": Family(
        t5gemma, "seq2seq", (r"(self|cross)_attn$", 9), (r"\.mlp$", 6), (r"coder\.layers\.\d+$", 6)),
    "whisper": Family(
        hf("Whisper", "ForConditionalGeneration", BART, num_mel_bins=8, max_source_positions=16,
           max_target_positions=32),
        "mel", (r"(self|encoder)_attn$", 9), (r"\.fc1$", 6), (r"coder\.layers\.\d+$", 6)),
    # vision
    "vit": Family(hf("ViT", "ForImageClassification", PICTURE), *VIT),
    "deit": Family(hf("DeiT", "ForImageClassification", PICTURE), *VIT),
    "beit": Family(
        hf("Beit", "ForImageClassification", PICTURE, use_relative_position_bias=True), *VIT),
    "data2vec-vision": Family(
        hf("Data2VecVision", "ForImageClassification", PICTURE, use_shared_relative_position_bias=True),
        "pixels", (r"\.attention\.attention$", 3), BERT[2], BERT[3]),
    "dinov2": Family(
        hf("Dinov2", "ForImageClassification", PICTURE, mlp_ratio=2), *VIT),
    "vit-mae": Family(
        hf("ViTMAE", "Model", PICTURE, mask_ratio=0.0, decoder_hidden_size=16, decoder_num_attention_heads=4,
           decoder_intermediate_size=16, decoder_num_hidden_layers=1),
        "pixels in order", *VIT[1:]),
    "swin": Family(
        hf("Swin", "ForImageClassification", image_size=16, patch_size=2, embed_dim=16, depths=[2, 2],
           num_heads=[2, 4], window_size=4, mlp_ratio=2.0),
        "pixels", (r"\.attention$", 4), (r"\.mlp$", 4), (r"\.blocks\.\d+$", 4)),
    "segformer": Family(
        hf("Segformer", "ForImageClassification", depths=[1, 1, 2, 2], hidden_sizes=[8, 16, 32, 32],
           num_attention_heads=[1, 2, 4, 4], sr_ratios=[2, 2, 1, 1], mlp_ratios=[2, 2, 2, 2]),
        "big pixels", (r"\.attention$", 6), (r"\.mlp$", 6), (r"\.blocks\.\d+$", 6)),
    "clip": Family(
        clip("CLIP"), "both", (r"\.self_attn$", 6), (r"layers\.\d+\.mlp$", 6), (r"encoder\.layers\.\d+$", 6)),
    "siglip": Family(
        clip("Siglip"), "both", (r"\.self_attn$", 6), (r"layers\.\d+\.mlp$", 6), (r"encoder\.layers\.\d+$", 6)),
    "llava": Family(
        llava, "picture among ids", (r"language_model.*\.self_attn$", 3), (r"language_model.*\.mlp$", 3),
        (r"language_model\.layers\.\d+$", 3)),
    "convnext": Family(
        hf("ConvNext", "ForImageClassification", depths=[2, 2], hidden_sizes=[16, 32], num_stages=2, patch_size=2),
        "pixels", ("", 0), (r"pwconv1$", 4), (r"stages\.\d+\.layers\.\d+$", 4)),
    "torchvision-vit": Family(
        torchvision_vit, "one tensor", (r"self_attention$", 3), (r"\.mlp$", 3), (r"encoder_layer_\d+$", 3)),
    "torchvision-swin": Family(
        torchvision_swin, "one tensor", (r"\.attn$", 4), (r"\.mlp$", 4), (r"^features\.[13]\.\d+$", 4)),
    "torch-encoder": Family(torch_encoder, "embedded", ATT, (r"linear1$", 3), (r"^layers\.\d+$", 3)),
    # sound
    "wav2vec2": Family(
        hf("Wav2Vec2", "ForCTC", SOUND), "sound", (r"\.attention$", 3), (r"\.feed_forward$", 3),
        (r"encoder\.layers\.\d+$", 3)),
    "hubert": Family(
        hf("Hubert", "ForCTC", SOUND), "sound", (r"\.attention$", 3), (r"\.feed_forward$", 3),
        (r"encoder\.layers\.\d+$", 3)),
}
# fmt: on


def build(name: str) -> nn.Module:
    """The model of a family in eval mode, the same weights every time; no number is 0 or 1 by chance."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = FAMILIES[name].build()
        with torch.no_grad():
            fixed = getattr(model, "_keys_to_ignore_on_save", None) or ()  # positions by formula, made anew on loading
            for parameter, p in model.named_parameters():
                if parameter not in fixed:
                    p.add_(torch.randn_like(p) / 10)
    return model.eval()


def example(name: str, n: int = 2, seed: int = 1) -> Any:
    """A batch of inputs for the model of a family."""
    dice = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 64, (n, 10), generator=dice)  # no special tokens
    pixels = torch.randn(n, 3, 16, 16, generator=dice)
    among = torch.cat([torch.full((n, 4), 3), ids], 1)  # four patches of the picture
    makers: dict[str, Callable[[], Any]] = {
        "ids": lambda: {"input_ids": ids},
        "seq2seq": lambda: {"input_ids": ids, "decoder_input_ids": ids.flip(1)[:, :6]},
        "mel": lambda: {"input_features": torch.randn(n, 8, 32, generator=dice), "decoder_input_ids": ids[:, :6]},
        "pixels": lambda: {"pixel_values": pixels},
        "big pixels": lambda: {"pixel_values": torch.randn(n, 3, 64, 64, generator=dice)},
        "both": lambda: {"input_ids": ids, "pixel_values": pixels},
        "picture among ids": lambda: {"input_ids": among, "pixel_values": pixels},
        "pixels in order": lambda: {"pixel_values": pixels, "noise": torch.arange(4.0).expand(n, 4)},
        "one tensor": lambda: pixels,
        "embedded": lambda: torch.randn(n, 5, 32, generator=dice),
        "sound": lambda: {"input_values": torch.randn(n, 400, generator=dice)},
    }
    return makers[FAMILIES[name].inputs]()
