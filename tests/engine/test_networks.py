"""LoRA, LyCORIS and hypernetworks change the layers their files name, as much as asked, and leave no trace when they go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from gpuworker.contract import NetworkUse, Weights
from gpuworker.engine.errors import CheckpointError
from gpuworker.engine.models.loader import Checkpoint, TextTower
from gpuworker.engine.models.networks import ActiveNetwork, NetworkMerger, load_network, merge
from gpuworker.engine.models.networks.names import layer_named, layers_of

WIDTH = 8
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CONVOLUTION = "lora_unet_down_blocks_0_resnets_0_conv1"
NORM = "lora_unet_down_blocks_0_attentions_0_norm"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
Tensors = dict[str, torch.Tensor]


def checkpoint_of(family: str = "sd1", dtype: torch.dtype = torch.float32, channels: int = 4) -> Checkpoint:
    torch.manual_seed(0)
    kinds = {"sd1": ("clip",), "sd2": ("open_clip",), "sdxl": ("clip", "open_clip")}[family]
    is_sdxl = family == "sdxl"
    unet = UNet2DConditionModel(
        in_channels=channels,
        block_out_channels=(WIDTH, WIDTH * 2),
        down_block_types=("DownBlock2D" if is_sdxl else "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D" if is_sdxl else "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    towers = tuple(TextTower(kind, _text().to(dtype).eval()) for kind in kinds)
    return Checkpoint(family, unet.to(dtype).eval(), None, towers, torch.ones(1000), 1.0)


def _text() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=10, bos_token_id=0,
            eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return checkpoint_of()


@pytest.fixture
def merger(checkpoint: Checkpoint) -> Iterator[NetworkMerger]:
    merger = NetworkMerger(checkpoint)
    yield merger
    merger.use(())


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., ActiveNetwork]:
    """Write tensors as a file, read it, and use it."""

    def build(tensors: Tensors, metadata: dict[str, str] | None = None, **use: Any) -> ActiveNetwork:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(tensors, path, metadata)
        kind = "hypernet" if metadata else "lora"
        weights = Weights(name="ink", sha256=path.stem)
        return ActiveNetwork(load_network(path), NetworkUse(kind=kind, weights=weights, **use))

    return build


def state(checkpoint: Checkpoint) -> Tensors:
    modules = {"unet": checkpoint.unet, **{str(index): tower.model for index, tower in enumerate(checkpoint.text)}}
    return {
        f"{part}.{name}": tensor.clone()
        for part, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def changed(before: Tensors, after: Tensors) -> set[str]:
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) - 0.5


def lora_for(layer: str, outputs: int = WIDTH, inputs: int = WIDTH, rank: int = 2, alpha: float = 1.0) -> Tensors:
    return {
        f"{layer}.lora_up.weight": random(outputs, rank),
        f"{layer}.lora_down.weight": random(rank, inputs),
        f"{layer}.alpha": torch.tensor(alpha),
    }


def product(tensors: Tensors, layer: str) -> torch.Tensor:
    return tensors[f"{layer}.lora_up.weight"] @ tensors[f"{layer}.lora_down.weight"]


# --- kinds -----------------------------------------------------------------------------------------------------------

W = WIDTH
KINDS: dict[str, tuple[str, Tensors]] = {
    "LoRA": (TO_Q, {"lora_up.weight": random(W, 2), "lora_down.weight": random(2, W)}),
    "LoRA of PEFT": (TO_Q, {"lora_B.weight": random(W, 2), "lora_A.weight": random(2, W)}),
    "LoRA of a convolution": (
        CONVOLUTION,
        {"lora_up.weight": random(W, 2, 1, 1), "lora_down.weight": random(2, W, 3, 3)},
    ),
    "LoRA with a middle": (
        CONVOLUTION,
        {
            "lora_up.weight": random(W, 2, 1, 1),
            "lora_mid.weight": random(2, 2, 3, 3),
            "lora_down.weight": random(2, W, 1, 1),
        },
    ),
    "DoRA": (TO_Q, {"lora_up.weight": random(W, 2), "lora_down.weight": random(2, W), "dora_scale": random(1, W)}),
    "LoHa": (
        TO_Q,
        {f"hada_w{i}_{side}": random(*shape) for i in (1, 2) for side, shape in (("a", (W, 2)), ("b", (2, W)))},
    ),
    "LoHa of a convolution, flat": (
        CONVOLUTION,
        {f"hada_w{i}_{side}": random(*shape) for i in (1, 2) for side, shape in (("a", (W, 2)), ("b", (2, W * 9)))},
    ),
    "LoHa with a core": (
        CONVOLUTION,
        {
            **{f"hada_w{i}_{side}": random(2, W) for i in (1, 2) for side in "ab"},
            **{f"hada_t{i}": random(2, 2, 3, 3) for i in (1, 2)},
        },
    ),
    "LoKr of whole factors": (TO_Q, {"lokr_w1": random(2, 2), "lokr_w2": random(4, 4)}),
    "LoKr of low rank": (
        TO_Q,
        {"lokr_w1_a": random(2, 1), "lokr_w1_b": random(1, 2), "lokr_w2_a": random(4, 2), "lokr_w2_b": random(2, 4)},
    ),
    "LoKr of a convolution with a core": (
        CONVOLUTION,
        {
            "lokr_w1": random(2, 2),
            "lokr_t2": random(2, 2, 3, 3),
            "lokr_w2_a": random(2, 4),
            "lokr_w2_b": random(2, 4),
        },
    ),
    "full": (CONVOLUTION, {"diff": random(W, W, 3, 3), "diff_b": random(W)}),
    "norm": (NORM, {"w_norm": random(W), "b_norm": random(W)}),
    "IA3 of inputs": (TO_Q, {"weight": random(W), "on_input": torch.tensor(True)}),
    "IA3 of outputs": (TO_Q, {"weight": random(W), "on_input": torch.tensor(False)}),
    "GLoRA": (
        TO_Q,
        {
            "a1.weight": random(2, W),
            "a2.weight": random(W, 2),
            "b1.weight": random(2, W),
            "b2.weight": random(W, 2),
            "alpha": torch.tensor(1.0),
        },
    ),
    "OFT": (TO_Q, {"oft_blocks": random(2, 4, 4), "alpha": torch.tensor(1e-2)}),
    "OFT of a convolution": (CONVOLUTION, {"oft_blocks": random(2, 4, 4)}),
    "OFT of ready rotations": (TO_Q, {"oft_diag": random(2, 4, 4)}),
    "BOFT": (TO_Q, {"oft_blocks": random(2, 2, 4, 4), "rescale": random(W, 1)}),
}


def kind_file(kind: str) -> tuple[str, Tensors]:
    layer, parts = KINDS[kind]
    return layer, {f"{layer}.{part}": tensor for part, tensor in parts.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_its_layer_alone_and_goes_without_a_trace(kind, checkpoint, merger, network):
    layer, tensors = kind_file(kind)
    before = state(checkpoint)
    assert merger.use([network(tensors, te=0.7, unet=0.7)]) == []
    module = layers_of(checkpoint)[layer_named(layer, layers_of(checkpoint))].module
    touched = changed(before, state(checkpoint))
    assert {name.rpartition(".")[0] for name in touched} == {f"unet.{path_of(checkpoint.unet, module)}"}
    merger.use(())
    assert changed(before, state(checkpoint)) == set() and merger.size_bytes == 0


def path_of(network: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(path for path, module in network.named_modules() if module is wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_zero_is_no_network_to_the_last_bit(kind, checkpoint, merger, network):
    before = state(checkpoint)
    merger.use([network(kind_file(kind)[1], te=0.0, unet=0.0)])
    assert changed(before, state(checkpoint)) == set()


def test_a_lora_adds_its_product_by_alpha_over_rank(checkpoint, merger, network):
    tensors, base = lora_for(TO_Q, alpha=1.0), to_q(checkpoint).clone()
    merger.use([network(tensors, unet=0.5)])
    assert torch.allclose(to_q(checkpoint), base + product(tensors, TO_Q) * 0.5 * 0.5, atol=1e-7)


def to_q(checkpoint: Checkpoint) -> torch.Tensor:
    return checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight


def test_only_so_many_ranks_of_a_lora_count_but_all_divide_alpha(checkpoint, merger, network):
    tensors, base = lora_for(TO_Q), to_q(checkpoint).clone()
    merger.use([network(tensors, dyn=1)])
    first = tensors[f"{TO_Q}.lora_up.weight"][:, :1] @ tensors[f"{TO_Q}.lora_down.weight"][:1]
    assert torch.allclose(to_q(checkpoint), base + first / 2, atol=1e-7)


def test_text_encoder_and_unet_have_multipliers_of_their_own(checkpoint, merger, network):
    both = {**lora_for(TO_Q), **lora_for(TEXT, outputs=16)}
    before = state(checkpoint)
    merger.use([network(both, te=1.0, unet=0.0)])
    (name,) = changed(before, state(checkpoint))
    assert name.startswith("0.") and name.endswith("mlp.fc1.weight")


def test_a_bias_is_made_where_there_was_none_and_goes_with_its_network(checkpoint, merger, network):
    layer = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    merger.use([network({f"{TO_Q}.diff": random(W, W), f"{TO_Q}.diff_b": torch.ones(W)}, unet=0.5)])
    assert torch.equal(layer.bias, torch.full((W,), 0.5))
    merger.use(())
    assert layer.bias is None


# --- several networks ------------------------------------------------------------------------------------------------


def test_networks_are_merged_in_the_order_of_the_prompt(checkpoint, merger, network):
    factors = network({f"{TO_Q}.weight": torch.ones(W), f"{TO_Q}.on_input": torch.tensor(True)})
    tensors, base = lora_for(TO_Q), to_q(checkpoint).clone()
    added = product(tensors, TO_Q) / 2
    lora = network(tensors)
    merger.use([factors, lora])
    assert torch.allclose(to_q(checkpoint), base * 2 + added, atol=1e-6)
    merger.use([lora, factors])
    assert torch.allclose(to_q(checkpoint), (base + added) * 2, atol=1e-6)


def test_a_file_named_twice_counts_twice_as_its_last_tag_says(checkpoint, merger, network):
    tensors, base = lora_for(TO_Q), to_q(checkpoint).clone()
    once = network(tensors, unet=0.3)
    again = ActiveNetwork(once.network, NetworkUse(kind="lora", weights=once.use.weights, unet=0.4))
    merger.use([once, again])
    assert torch.allclose(to_q(checkpoint), base + product(tensors, TO_Q) / 2 * 0.8, atol=1e-6)


def test_other_multipliers_and_other_networks_start_from_the_base_again(checkpoint, merger, network):
    first, second = network(lora_for(TO_Q)), network(lora_for(TEXT, outputs=16))
    merger.use([first])
    alone = state(checkpoint)
    for others in ([second], [first, second], [network(lora_for(TO_Q), unet=-3.0)]):
        merger.use(others)
    merger.use([first])
    assert changed(alone, state(checkpoint)) == set()


def test_the_same_set_again_touches_nothing(checkpoint, merger, network):
    lora = network(lora_for(TO_Q))
    merger.use([lora])
    with torch.no_grad():
        to_q(checkpoint).fill_(7)
    merger.use([lora])
    assert bool((to_q(checkpoint) == 7).all())


def test_half_precision_is_rounded_once_whatever_the_number_of_networks(network):
    checkpoint = checkpoint_of(dtype=torch.float16)
    tensors, base = lora_for(TO_Q), to_q(checkpoint).float()
    NetworkMerger(checkpoint).use([network(tensors, unet=0.1), network(tensors, unet=0.2)])
    exact = base + product(tensors, TO_Q) / 2 * 0.1 + product(tensors, TO_Q) / 2 * 0.2
    assert torch.equal(to_q(checkpoint), exact.half())


def test_a_merge_that_breaks_off_leaves_a_base_to_return_to(checkpoint, merger, network, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError

    before = state(checkpoint)
    merger.use([network(lora_for(TO_Q))])
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(merge, "change", full)
        merger.use([network({**lora_for(TO_Q), **lora_for(TEXT, outputs=16)})])
    merger.use(())
    assert changed(before, state(checkpoint)) == set()


# --- in place --------------------------------------------------------------------------------------------------------


def test_h9_no_weight_moves_and_no_module_is_replaced(checkpoint, merger, network):
    places = [parameter.data_ptr() for parameter in checkpoint.unet.parameters()]
    modules = list(checkpoint.unet.modules())
    for weight in (0.1, 0.5, 1.0):
        merger.use([network(kind_file(kind)[1], unet=weight) for kind in ("LoRA", "full", "norm")])
        assert places == [parameter.data_ptr() for parameter in checkpoint.unet.parameters()]
        assert all(one is other for one, other in zip(modules, checkpoint.unet.modules(), strict=True))


def test_b11_fifty_changes_of_networks_compile_nothing_anew(checkpoint, merger, network):
    compilations = 0

    def counting(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> Callable[..., Any]:
        nonlocal compilations
        compilations += 1
        return graph.forward

    torch.compiler.reset()
    block = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    run, picture = torch.compile(block, backend=counting), random(1, 4, W)
    loras = [network(lora_for(TO_Q, rank=rank)) for rank in (1, 2, 3)]
    results = []
    for index in range(50):
        merger.use([loras[index % 3]])
        with torch.inference_mode():
            results.append(run(picture))
    assert compilations == 1
    assert torch.equal(results[0], results[3]) and not torch.equal(results[0], results[1])


# --- names -----------------------------------------------------------------------------------------------------------

NAMES = [
    ("sd1", "lora_unet_conv_in", "diffusion_model_input_blocks_0_0"),
    ("sd1", "lora_unet_time_embedding_linear_2", "diffusion_model_time_embed_2"),
    ("sd1", "lora_unet_down_blocks_0_downsamplers_0_conv", "diffusion_model_input_blocks_3_0_op"),
    (
        "sd1",
        "lora_unet_down_blocks_1_attentions_1_proj_in",
        "diffusion_model_input_blocks_5_1_proj_in",
    ),
    ("sd1", "lora_unet_mid_block_resnets_1_conv2", "diffusion_model_middle_block_2_out_layers_3"),
    ("sd1", "lora_unet_up_blocks_1_resnets_2_conv_shortcut", "diffusion_model_output_blocks_5_0_skip_connection"),
    ("sd1", "lora_unet_output_blocks_0_0_in_layers_2", "diffusion_model_output_blocks_0_0_in_layers_2"),
    ("sd1", "oft_unet_out_2", "diffusion_model_out_2"),
    ("sd1", TEXT, "transformer_text_model_encoder_layers_0_mlp_fc1"),
    ("sd1", TEXT.replace("te", "te1", 1), "transformer_text_model_encoder_layers_0_mlp_fc1"),
    ("sd1", TEXT.replace("te", "te2", 1), None),
    ("sd1", "lora_te_text_model_final_layer_norm", None),
    ("sd2", TEXT, "model_transformer_resblocks_0_mlp_c_fc"),
    (
        "sd2",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
        "model_transformer_resblocks_0_attn_q_proj",
    ),
    ("sdxl", TEXT, None),
    ("sdxl", TEXT.replace("te", "te1", 1), "0_transformer_text_model_encoder_layers_0_mlp_fc1"),
    ("sdxl", TEXT.replace("te", "te2", 1), "1_model_transformer_resblocks_0_mlp_c_fc"),
    ("sdxl", "lora_unet_input_blocks_4_1_proj_in", "diffusion_model_input_blocks_4_1_proj_in"),
    ("sdxl", "unet", None),
]


@pytest.mark.parametrize(("family", "key", "name"), NAMES, ids=[f"{family} {key}" for family, key, _ in NAMES])
def test_names_of_files_are_understood_as_a1111_understands_them(family, key, name):
    assert layer_named(key, layers_of(checkpoint_of(family))) == name


def test_an_openclip_attention_is_changed_as_a_whole_or_not_at_all(network):
    checkpoint = checkpoint_of("sd2")
    merger, before = NetworkMerger(checkpoint), state(checkpoint)
    attention = "lora_te_text_model_encoder_layers_0_self_attn_"
    parts = [lora_for(f"{attention}{part}_proj") for part in ("q", "k", "v", "out")]
    merger.use([network({**parts[0], **parts[1], **parts[2]})])
    assert changed(before, state(checkpoint)) == set()
    merger.use([network({**parts[0], **parts[1], **parts[2], **parts[3]})])
    assert len(changed(before, state(checkpoint))) == 4


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_a_lora_of_another_family_changes_nothing_and_says_so(checkpoint, merger, network):
    before = state(checkpoint)
    warnings = merger.use([network(lora_for("lora_te3_encoder_block_0"))])
    assert warnings == ["The network ink has no effect: it is made for another kind of model."]
    assert changed(before, state(checkpoint)) == set()


def test_layers_of_other_widths_are_left_out_and_counted(checkpoint, merger, network):
    before = state(checkpoint)
    warnings = merger.use([network({**lora_for(TO_Q, inputs=12), **lora_for(TEXT, outputs=16)})])
    assert warnings == ["The network ink does not fit 1 of this model's layers, which stay without it."]
    assert len(changed(before, state(checkpoint))) == 1


def test_a_file_with_one_layer_of_no_known_kind_is_not_loaded_at_all(checkpoint, merger, network):
    before = state(checkpoint)
    (warning,) = merger.use([network({**lora_for(TO_Q), f"{TEXT}.mystery": random(2, 2)})])
    assert "of no known kind" in warning and changed(before, state(checkpoint)) == set()


def test_an_inpainting_checkpoint_keeps_its_further_channels(network):
    checkpoint = checkpoint_of(channels=9)
    before = checkpoint.unet.conv_in.weight.clone()
    assert NetworkMerger(checkpoint).use([network({"lora_unet_conv_in.diff": torch.ones(W, 4, 3, 3)})]) == []
    added = checkpoint.unet.conv_in.weight - before
    assert torch.allclose(added[:, :4], torch.ones(W, 4, 3, 3)) and not added[:, 4:].any()


def test_a_damaged_file_is_a_typed_error(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError):
        load_network(tmp_path / "a.safetensors")


# --- hypernetworks ---------------------------------------------------------------------------------------------------


def hypernetwork(structure: dict[str, Any], places: tuple[int, ...], width: int = W) -> tuple[Tensors, dict[str, str]]:
    """Linear layers at those places of the sequence, hidden twice as wide."""
    sizes = [(width * 2, width), (width, width * 2)]
    tensors = {}
    for side in (0, 1):
        for place, shape in zip(places, sizes, strict=True):
            tensors[f"{width}.{side}.linear.{place}.weight"] = random(*shape) * (1 + side)
            tensors[f"{width}.{side}.linear.{place}.bias"] = torch.zeros(shape[0])
    return tensors, {"hypernetwork": json.dumps(structure)}


PLAIN = {"layer_structure": [1, 2, 1], "activation_func": "linear", "activate_output": False}


def keys_and_values(attention: Any, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return attention.to_k(context), attention.to_v(context)


@pytest.mark.parametrize("attention", ["attn1", "attn2"])
def test_a_hypernetwork_changes_what_keys_and_values_are_made_from(attention, checkpoint, merger, network):
    tensors, metadata = hypernetwork(PLAIN, (0, 1))
    layer = getattr(checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0], attention)
    context = random(2, 5, W)
    expected = [
        projection(
            context
            + (context @ tensors[f"{W}.{side}.linear.0.weight"].T) @ tensors[f"{W}.{side}.linear.1.weight"].T * 0.5
        )
        for side, projection in enumerate((layer.to_k, layer.to_v))
    ]
    before = keys_and_values(layer, context)
    merger.use([network(tensors, metadata, te=0.5)])
    for found, wanted in zip(keys_and_values(layer, context), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)
    merger.use(())
    assert all(map(torch.equal, keys_and_values(layer, context), before))


def test_hypernetworks_follow_one_another_in_the_order_of_the_prompt(checkpoint, merger, network):
    first = network(*hypernetwork(PLAIN, (0, 1)))
    structure = {**PLAIN, "activation_func": "relu"}
    second = network(*hypernetwork(structure, (0, 2)))
    layer, context = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2, random(2, 5, W)
    results = []
    for active in ([first, second], [second, first], [first, second]):
        assert merger.use(active) == []
        results.append(layer.to_k(context))
    assert torch.equal(results[0], results[2]) and not torch.allclose(results[0], results[1])


def test_places_of_dropout_and_norm_are_kept(checkpoint, merger, network):
    structure = {
        "layer_structure": [1, 2, 1],
        "activation_func": "relu",
        "is_layer_norm": True,
        "dropout_structure": [0, 0.3, 0],
    }
    tensors, metadata = hypernetwork(structure, (0, 4))
    for place, size in ((2, W * 2), (6, W)):
        for side in (0, 1):
            tensors |= {f"{W}.{side}.linear.{place}.{part}": torch.ones(size) for part in ("weight", "bias")}
    assert merger.use([network(tensors, metadata)]) == []


def test_only_layers_of_a_hypernetworks_width_are_changed(checkpoint, merger, network):
    narrow = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    context = random(2, 5, W)
    before = keys_and_values(narrow, context)
    merger.use([network(*hypernetwork(PLAIN, (0, 1), width=W * 2))])
    assert all(map(torch.equal, keys_and_values(narrow, context), before))


def test_a_hypernetwork_leaves_the_type_of_half_precision(network):
    checkpoint = checkpoint_of(dtype=torch.bfloat16)
    NetworkMerger(checkpoint).use([network(*hypernetwork(PLAIN, (0, 1)))])
    attention = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert attention.to_k(random(1, 2, W).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("structure", [{**PLAIN, "activation_func": "maxout"}, {**PLAIN, "layer_structure": [1, 3, 1]}])
def test_a_hypernetwork_that_is_not_what_it_says_is_left_out_with_a_warning(structure, checkpoint, merger, network):
    (warning,) = merger.use([network(*hypernetwork(structure, (0, 1)))])
    assert warning.startswith("The hypernetwork ink cannot be used")
