"""The formulas of memory, held against what is really allocated, layer by layer, on a CPU."""

import contextlib
import weakref

import pytest
import torch
import transformers as hf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from auditkit.miniature.boards import Boards
from auditkit.models.load import load_model
from auditkit.models.offload import frozen_vision
from auditkit.planning import memory, sizes

LAYERS, ROWS, TOKENS = 2, 2, 192
TEXT = dict(
    vocab_size=300, hidden_size=256, intermediate_size=1024, num_hidden_layers=LAYERS, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, layer_types=["full_attention"] * LAYERS,
)  # fmt: skip
VISION = dict(hidden_size=128, intermediate_size=480, num_attention_heads=4, image_size=224, patch_size=14)


class Allocations(TorchDispatchMode):
    """Bytes of all storages made while it lasts: how many there are, and the most there were at once."""

    def __init__(self, *there: torch.Tensor):
        super().__init__()
        self.now = self.most = 0
        self.seen: dict[int, weakref.ref] = {}
        self.there = {tensor.untyped_storage().data_ptr() for tensor in there}

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        out = function(*arguments, **(named or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._take(tensor.untyped_storage())
        return out

    def _take(self, storage) -> None:
        key, size = id(storage), storage.nbytes()
        if key not in self.seen and storage.data_ptr() not in self.there:
            self.now += size
            self.most = max(self.most, self.now)
            self.seen[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self.seen.pop(key, None)


@pytest.fixture(params=["gemma3", "paligemma2"])
def model(request):
    return build(request.param)


def build(family: str, vision_layers: int = 2):
    vision = hf.SiglipVisionConfig(**VISION, num_hidden_layers=vision_layers, vision_use_head=False)
    if family == "gemma3":
        text = hf.Gemma3TextConfig(**TEXT)
        config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_index=299)
    else:
        text = hf.Gemma2Config(**TEXT)
        config = hf.PaliGemmaConfig(
            text_config=text, vision_config=vision, projection_dim=256, hidden_size=256, image_token_index=299
        )
    torch.manual_seed(0)
    return hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()


def near(counted: float, formula: float, least: float = 0.8, most: float = 1.25) -> bool:
    return least <= formula / counted <= most


def allocated(model, work) -> int:
    with Allocations(*model.parameters(), *model.buffers()) as found:
        work()
    return found.most


def test_reading(model):
    """The larger of the vision tower and the text part, which are passed one after the other."""
    size = sizes.count(model.config)
    pictures = torch.zeros(ROWS, 3, 224, 224, dtype=torch.bfloat16)
    states = torch.zeros(ROWS, TOKENS, size.hidden, dtype=torch.bfloat16)
    there = torch.ones(ROWS, TOKENS, dtype=torch.long)
    text = model.model.language_model

    @torch.no_grad()
    def see():
        model.model.get_image_features(pictures)

    @torch.no_grad()
    def read():
        text(inputs_embeds=states, attention_mask=there, use_cache=False)

    counted = max(allocated(model, see) + pictures.nbytes, allocated(model, read) + pictures.nbytes)
    assert near(counted, memory.reading(size, 2, ROWS, TOKENS), most=1.4)


def test_the_cache(model):
    size = sizes.count(model.config)
    states = torch.zeros(ROWS, TOKENS, size.hidden, dtype=torch.bfloat16)
    with torch.no_grad():
        out = model.model.language_model(inputs_embeds=states, use_cache=True)
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers)
    assert kept == memory.cache(size, 2, ROWS, TOKENS)


def test_a_local_layer_keeps_no_more_than_its_window():
    size = sizes.count(sizes.known("google/gemma-3-4b-it"))
    short, long = memory.cache(size, 2, 1, 1024), memory.cache(size, 2, 1, 2048)
    assert short == 34 * 1024 * 2 * 4 * 256 * 2  # 139 kB a token
    assert long == short + (34 - 29) * 1024 * 2 * 4 * 256 * 2


def learning(model, vision=frozen_vision) -> int:
    """Bytes of a forward and backward pass as TRL's trainer has them: checkpoints, an adapter, inputs that require
    gradients.
    """
    from peft import LoraConfig, get_peft_model

    from auditkit.models.lora import TEXT_PART

    whole = get_peft_model(model, LoraConfig(r=2, target_modules=TEXT_PART)).train()
    whole.enable_input_require_grads()
    model.activation_checkpointing_enable({"use_reentrant": False})
    pictures = torch.zeros(ROWS, 3, 224, 224, dtype=torch.bfloat16)
    ids, there = torch.zeros(2, ROWS, TOKENS, dtype=torch.long).unbind()

    def learn():
        with vision(model), torch.autocast("cpu", torch.bfloat16):
            seen = model.model.get_image_features(pictures).pooler_output
            states = model.get_input_embeddings()(ids) + seen.mean()  # not its place, but its way back
            out = model.model.language_model(inputs_embeds=states, attention_mask=there + 1, use_cache=False)
        out.last_hidden_state.float().sum().backward()

    return allocated(whole, learn) + pictures.nbytes


def test_learning(model):
    size = sizes.count(model.config)
    formula = memory.training(size, 2, ROWS, TOKENS, 0) + 4 * 2 * size.lora
    assert near(learning(model), formula)


@pytest.mark.parametrize("family", ["gemma3", "paligemma2"])
def test_learning_keeps_nothing_of_the_vision_tower_however_deep_it_is(family):
    shallow, deep = (learning(build(family, layers)) for layers in (2, 12))
    assert deep == pytest.approx(shallow, rel=0.01)
    kept = 10 * ROWS * 256 * 128 * 2  # the inputs of ten layers
    assert learning(build(family, 12), contextlib.nullcontext) >= shallow + kept


def test_an_adapter_in_training_takes_sixteen_bytes_a_weight():
    size = sizes.look_up("miniature:auditor")
    model = load_model("miniature:auditor", "cpu").model
    from peft import LoraConfig, get_peft_model

    from auditkit.models.lora import TEXT_PART

    model = get_peft_model(model, LoraConfig(r=4, target_modules=TEXT_PART))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    assert memory.adapter(size, 4) == moments + sum(p.nbytes + p.grad.nbytes for p in trained)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights(bits):
    pytest.importorskip("bitsandbytes", reason="needs the extra `quantize`")
    model = load_model(f"miniature:target?bits={bits}", "cpu").model
    size = sizes.look_up("miniature:target")
    scales = 0
    if bits == 4:  # bitsandbytes keeps the scales beside the weights
        for module in model.modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                scales += state.absmax.nbytes + state.state2.absmax.nbytes
    else:
        scales = sum(
            m.weight.SCB.nbytes
            for m in model.modules()
            if hasattr(getattr(m, "weight", None), "SCB") and m.weight.SCB is not None
        )
    stored = sum(p.nbytes for p in model.parameters())
    assert near(stored + scales, memory.weights(size, 4, bits), 0.95, 1.05)


@torch.no_grad()
def operations(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_operations_are_those_that_torch_counts_at_real_size():
    """Gemma3-4B on torch's meta device: shapes, but no numbers."""
    config = sizes.known("google/gemma-3-4b-it")
    model, size = sizes.empty(config).to(torch.bfloat16).eval(), sizes.count(config)
    picture = torch.zeros(1, 3, 896, 896, dtype=torch.bfloat16, device="meta")
    cache = hf.DynamicCache(config=config.text_config)

    def read(tokens, cache=None):
        states = torch.zeros(1, tokens, size.hidden, dtype=torch.bfloat16, device="meta")
        model.model.language_model(inputs_embeds=states, past_key_values=cache, use_cache=True)

    seen, whole = operations(lambda: model.get_image_features(picture)), operations(lambda: read(300))
    head, tail = operations(lambda: read(260, cache)), operations(lambda: read(40, cache))
    assert memory.see_operations(size) == pytest.approx(seen, rel=0.01)  # all but patches' embedding
    assert memory.read_operations(size, 3, 300) == pytest.approx(3 * (seen + whole), rel=0.01)
    shared = memory.read_operations(size, 24, 300, questions=8, common=260)
    assert shared == pytest.approx(3 * (seen + head) + 24 * tail, rel=0.01)
    encoded = memory.read_operations(size, 24, 1100, 8, 260)  # past the window of its local layers
    assert encoded == pytest.approx(memory.read_operations(size, 24, 1100) - 21 * seen, rel=0.01)


@pytest.mark.parametrize("images", [1, 4])
def test_rows_that_share_an_image_take_no_more_than_whole_ones(images):
    """Their cache is repeated, so whole rows are what memory is planned for."""
    vlm = load_model("miniature:gemma3", "cpu")
    boards = [picture.image for picture in Boards().pictures("test", images, 0)]
    rows = [boards[i % images] for i in range(16)]
    asked = [f"what is in cell {'abcd'[i % 4]}{i // 4 + 1}?" for i in range(16)]
    vlm.write(rows, asked, 8)  # what is tried at first
    assert vlm.tried == {"shared": ""}
    shared = allocated(vlm.model, lambda: vlm.write(rows, asked, 8))
    whole = allocated(vlm.model, lambda: vlm.write([image.copy() for image in rows], asked, 8))
    assert shared < whole
