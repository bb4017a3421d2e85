"""Every causal language model of transformers, small enough to be built in a second.

`build(name, seed)` makes a model of a model type (a key of transformers' mapping for
AutoModelForCausalLM) with random weights: its default config with small numbers, at least one
layer of each kind that it has, windows and chunks shorter than the sequences of the tests. The
weights are drawn so that the next token is neither certain nor a coin toss and depends on what
was read: a model that ignores its input would hide every mistake.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB, WIDTH, HEADS, HEAD, WINDOW = 19, 32, 4, 8, 4  # ids of the character tokenizer; small numbers

# What the fields of a config become, where it has them.
SMALL = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "max_position_embeddings": 256,
    "forced_eos_token_id": None,
    **dict.fromkeys("hidden_size d_model n_embd emb_dim embedding_size embedding_dim".split(), 32),
    **dict.fromkeys("attention_hidden_size lru_width word_embed_proj_dim".split(), 32),
    **dict.fromkeys("input_embedding_size output_embedding_size".split(), 32),
    **dict.fromkeys("intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim".split(), 48),
    **dict.fromkeys("ffn_hidden_size n_inner dff dim_ff d_inner intermediate_size_mlp".split(), 48),
    **dict.fromkeys("dense_intermediate_size feed_forward_size".split(), 48),
    **dict.fromkeys("moe_intermediate_size shared_expert_intermediate_size".split(), 24),
    **dict.fromkeys("expert_ffn_hidden_size moe_shared_expert_intermediate_size".split(), 24),
    **dict.fromkeys("shared_intermediate_size shared_experts_intermediate_size".split(), 24),
    **dict.fromkeys("num_hidden_layers n_layer n_layers num_layers num_blocks".split(), 2),
    **dict.fromkeys("encoder_layers decoder_layers num_encoder_layers".split(), 2),
    "num_decoder_layers": 2,
    **dict.fromkeys("num_attention_heads n_head n_heads num_heads attention_heads".split(), 4),
    **dict.fromkeys("encoder_attention_heads decoder_attention_heads".split(), 4),
    **dict.fromkeys("num_encoder_attention_heads num_decoder_attention_heads".split(), 4),
    **dict.fromkeys("swa_num_attention_heads".split(), 4),
    **dict.fromkeys("num_key_value_heads swa_num_key_value_heads num_kv_heads".split(), 2),
    **dict.fromkeys("head_dim swa_head_dim d_head dim_head attention_head_size".split(), 8),
    **dict.fromkeys("kv_channels qk_nope_head_dim v_head_dim d_kv".split(), 8),
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "rotary_dim": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    **dict.fromkeys("num_experts n_routed_experts num_local_experts moe_num_experts".split(), 4),
    **dict.fromkeys("num_experts_per_tok num_experts_per_token moe_topk moe_k".split(), 2),
    **dict.fromkeys("n_group num_expert_group topk_group n_shared_experts".split(), 1),
    **dict.fromkeys("num_shared_experts moe_num_shared_experts".split(), 1),
    **dict.fromkeys("first_k_dense_replace num_dense_layers".split(), 1),
    **dict.fromkeys("sliding_window attention_window_size window_size local_attention".split(), 4),
    **dict.fromkeys("sliding_window_size attention_chunk_size".split(), 4),
    **dict.fromkeys("index_topk index_block_size index_topk_blocks".split(), 4),
    "index_n_heads": 16,  # fewer have all scores 0, and the top k of equal scores is arbitrary
    "index_head_dim": 8,
    **dict.fromkeys("chunk_size mamba_chunk_size".split(), 4),
    **dict.fromkeys("state_size ssm_state_size mamba_d_state".split(), 8),
    **dict.fromkeys("time_step_rank mamba_dt_rank".split(), 4),
    **dict.fromkeys("linear_key_head_dim linear_value_head_dim linear_head_dim".split(), 8),
    **dict.fromkeys("linear_num_key_heads linear_num_value_heads linear_num_heads".split(), 4),
    "prompt_length": 4,
    "type_vocab_size": 2,
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "adapter_out_dim": 32,
    "unpadded_vocab_size": VOCAB,
}


def kinds(values: list, least: int = 2) -> list:
    "Each kind of layer once, in the order in which they come, repeated up to `least` layers."
    once = list(dict.fromkeys(values))
    return once * (-(-least // len(once))) if once else once


def layers_of(config: PreTrainedConfig, known: dict) -> dict:
    "One layer of each kind: the lists of layer types, and how many layers that makes."
    names = ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")
    lists = {
        name: kinds(known[name])
        for name in names
        if isinstance(known.get(name), list)
        and known[name]
        and not isinstance(getattr(type(config), name, None), property)
    }
    if not lists:
        return {}
    count = max(map(len, lists.values()))
    lists = {name: [few[i % len(few)] for i in range(count)] for name, few in lists.items()}
    return {**lists, "num_hidden_layers": count}


def small_fields(config: PreTrainedConfig) -> dict:
    "The arguments that make a config of this class small."
    known = config.to_dict()
    fields = {name: small for name, small in SMALL.items() if known.get(name) is not None}
    if known.get("kv_lora_rank") is not None:
        fields["num_key_value_heads"] = HEADS  # latent attention has no groups of heads
        if known.get("head_dim") == known.get("qk_rope_head_dim"):
            fields["head_dim"] = SMALL["qk_rope_head_dim"]
    fields |= layers_of(config, known)
    if "is_decoder" in known:
        fields["is_decoder"] = True
    for name, part in vars(config).items():
        if isinstance(part, PreTrainedConfig):
            fields[name] = small_part(part)
    return {**fields, **OWN.get(config.model_type, {})}


def small_part(part: PreTrainedConfig) -> PreTrainedConfig:
    "A part of a config made small."
    return type(part)(**small_fields(part))


def full_after(kind: str) -> dict:
    "One layer of a kind, then one of full attention."
    return {"layer_types": [kind, "full_attention"], "num_hidden_layers": 2}


MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_expand": 2}
GEMMA4 = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "global_head_dim": 16,
}
DOTS3 = {f"swa_{k}": v for k, v in SMALL.items() if k in ("q_lora_rank", "kv_lora_rank")} | {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_head_dim": 12,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    "head_dim": 12,
}
# What the general rule does not know, by model type (also of the parts of a config).
OWN: dict[str, dict] = {
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA | full_after("linear_attention"),
    "cohere_compass_text": full_after("sliding_attention")
    | {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": None,
        }
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1}
    | {"num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    "dots3_note_text": DOTS3,
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_ssm": 64, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 2, "num_hidden_layers": 4, "laurel_rank": 4}
    | {"layer_types": ["sliding_attention", "full_attention"] * 2}
    | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
    | {"activation_sparsity_pattern": [0.95, 0.0, 0.95, 0.0], "intermediate_size": [48] * 4},
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": {"global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2": full_after("conv"),
    "lfm2_moe": full_after("conv"),
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 4,
    },
    "reformer": {
        "axial_pos_embds": False,
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "attn_layers": ["local", "local"],
    },
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_key_value_heads": 4, "mamba_dt_rank": 4, "n_mamba_heads": 2}
    | {"attention_head_dim": 16, "attention_hidden_size": 64}
    | {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "zamba2": {"num_key_value_heads": 4, "n_mamba_heads": 4, "adapter_rank": 4}
    | {"attention_head_dim": 16, "attention_hidden_size": 64}
    | {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 8},
}


# Model types that are no causal language model over text by themselves, or cannot be made here.
LEFT_OUT = {
    "blt": "its own forward fails: BltConfig has no num_hidden_layers, which DynamicCache reads",
    "gemma3n": "needs timm for its vision tower; its text decoder is gemma3n_text",
    "gemma4_assistant": "drafts for gemma4 from its cache: no model by itself",
    "gemma4_unified_assistant": "drafts for gemma4_unified from its cache: no model by itself",
    "musicgen": "reads and writes codebooks of sound, and its config is that of an encoder-decoder",
    "musicgen_melody": "as musicgen",
}
# Further settings of a model type that change what it is: name -> model type, fields.
VARIANTS = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False}),
    "qwen2, windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
        | {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "mixtral, windows": ("mixtral", {"sliding_window": WINDOW}),
    "phi3, windows": ("phi3", {"sliding_window": WINDOW}),
    "starcoder2, windows": ("starcoder2", {"sliding_window": WINDOW}),
}
NAMES = [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT]


def small_config(name: str, **more) -> PreTrainedConfig:
    "A small config of a model type, or of one of VARIANTS."
    model_type, own = VARIANTS.get(name, (name, {}))
    cls = CONFIG_MAPPING[model_type]
    return cls(**{**small_fields(cls()), **own, **more})


@torch.no_grad()
def redraw(model: PreTrainedModel) -> None:
    "Matrices that keep the size of what they multiply; everything else moved a little."
    for p in model.parameters():
        if p.ndim >= 2 and min(p.shape) > 1:
            p.copy_(torch.randn_like(p) * p.shape[-1] ** -0.5)
        else:
            p.add_(0.1 * torch.randn_like(p))


@torch.no_grad()
def decide(model: PreTrainedModel, low: float = 1.2, high: float = 1.8, rounds: int = 40) -> None:
    "Scale the output layer until the next token of a text has about 1.5 nats of entropy."
    ids = torch.randint(3, VOCAB, (4, 12))
    head = model.get_output_embeddings()
    for _ in range(rounds):
        logps = model(ids).logits[..., :VOCAB].log_softmax(-1)
        entropy = -(logps.exp() * logps).sum(-1).mean()
        if low < entropy < high:
            return
        head.weight.mul_(1.2 if entropy > high else 0.8)


def build(name: str, seed: int = 0, vocab_size: int = VOCAB, **more) -> PreTrainedModel:
    "A small model of a model type with random weights that depend on `seed` alone."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = small_config(name, vocab_size=vocab_size, **more)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        redraw(model)
        decide(model)
    return model


# ---- LoRA --------------------------------------------------------------------------------

ATTENTION = ("q_proj", "v_proj", "c_attn", "query_key_value", "qkv_proj", "Wqkv", "query", "value")


def module_name(model: PreTrainedModel, module: torch.nn.Module) -> str:
    "The name of a module of a model."
    return next(name for name, other in model.named_modules() if other is module)


def lora_targets(model: PreTrainedModel, where: str) -> list[str]:
    "The modules that LoRA changes: `attention`, `head` or `embeddings`."
    if where == "head":
        return [module_name(model, model.get_output_embeddings())]
    if where == "embeddings":
        return [module_name(model, model.get_input_embeddings())]
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return [name for name in ATTENTION if name in names]


def with_lora(model: PreTrainedModel, where: str, rank: int = 2, seed: int = 0) -> torch.nn.Module:
    "The model wrapped by peft, with adapters that change it from the start."
    from peft import LoraConfig, get_peft_model

    targets = lora_targets(model, where)
    config = LoraConfig(r=rank, target_modules=targets, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config).eval()


# ---- what a model is ---------------------------------------------------------------------

RECURRENT = {"linear_attention", "conv", "recurrent", "hybrid", "hybrid_sliding", "mamba"}
WINDOWED = {"sliding_attention", "chunked_attention", "local", "hybrid_sliding"}
STATE_SPACE = {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"}
MIXED = {"falcon_h1", "zaya"}  # every layer has a state and attention
ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert "
    "roberta roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod"
).split()
DECODERS = (
    "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet "
    "trocr whisper"
).split()
ALIBI = {"bloom", "mpt"}
RELATIVE = {"cpmant", "inkling_text", "inkling2_text", "inkling2_loop_text", "prophetnet", "xlnet"}


def layer_kinds(config: PreTrainedConfig) -> set[str]:
    "The kinds of layers that a config lists."
    lists = ("layer_types", "layers_block_type", "block_types", "attention_layers", "attn_layers")
    return {kind for name in lists for kind in getattr(config, name, None) or ()}


def mixer(name: str, config: PreTrainedConfig) -> str:
    "What mixes tokens: attention, windows, a state, or both."
    layers = layer_kinds(config)
    if name in STATE_SPACE:
        return "state space"
    if name in MIXED or layers & RECURRENT:
        return "hybrid"
    if any("indexed" in kind or "sparse" in kind or "compressed" in kind for kind in layers):
        return "sparse attention"
    windows = [getattr(config, f, None) for f in ("sliding_window", "sliding_window_size")]
    if layers & WINDOWED or (not layers and any(windows)):
        return "sliding window"
    return "attention"


def kind(model: PreTrainedModel, name: str) -> str:
    "What a model is made of."
    config = model.config.get_text_config(decoder=True)
    words = [mixer(name, config)]
    if any(".experts." in parameter for parameter, _ in model.named_parameters()):
        words.append("experts")
    caps = ("final_logit_softcapping", "attn_logit_softcapping", "logits_soft_cap")
    if any(getattr(config, cap, None) for cap in caps):
        words.append("soft cap")
    if any(hasattr(model.config, part) for part in ("vision_config", "audio_config")):
        words.append("multimodal")
    words += ["encoder read causally"] * (name in ENCODERS)
    words += ["decoder of an encoder-decoder"] * (name in DECODERS)
    return ", ".join(words)


def positions(model: PreTrainedModel, name: str) -> str:
    "How a model knows where a token stands."
    modules = " ".join(module for module, _ in model.named_modules())
    if name in ALIBI or getattr(model.config, "alibi", False):
        return "ALiBi"
    if name in RELATIVE:
        return "relative"
    if "rotary" in modules or name in (
        "codegen",
        "gptj",
        "deepseek_v2",
        "lfm2_moe",
        "llama4",
        "llama4_text",
    ):
        return "rotary"
    marks = ("wpe", "embed_positions", "position_embeddings", "positions_embed", "pos_embed")
    if name == "ctrl" or any(mark in modules for mark in marks):
        return "absolute"
    return "none"


def is_tied(model: PreTrainedModel) -> bool:
    "Whether input and output embedding are one."
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    first, last = (getattr(end, "base_layer", end).weight for end in ends)
    return first.data_ptr() == last.data_ptr()


def about(model: torch.nn.Module) -> dict[str, str]:
    "The columns that say what a model is."
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = base.config.model_type
    return {
        "kind": kind(base, name),
        "positions": positions(base, name),
        "tied": "yes" if is_tied(base) else "no",
    }
