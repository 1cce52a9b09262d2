"""How many bytes and floating-point operations a model needs, by formula, from its size alone.

The formulas count what grows with the model and the batch, and leave out what does not matter beside it. They are
written with e bytes a number, T tokens of a prompt (image tokens included), N tokens written after it, and B rows:

    weights     parameters x e; quantized linear weights take 0.516 (4 bits: NF4 with doubly quantized scales) or 1 byte
    KV cache    B x 2 x heads of keys and values x head width x e x (T + N, at most the window in local layers), a layer
    reading     B x the larger of one vision layer, patches x (4 hidden + 2 intermediate) x e, and one text layer,
                T x (3 hidden + 3 intermediate) x e, for only one layer's activations are there at once. Where the
                attention keeps its scores (eager, as Gemma 2 in PaliGemma 2) it is the layer's attention:
                T x 4 hidden x e + heads x T x T x (3e + 5)
    a token     B x vocabulary x 12: the last position's logits, in float32, and what sampling makes of them
    scoring     B x (N + 1) x vocabulary x (e + 8): logits, their float32 copy and its softmax (token_probabilities)
    training    LoRA weights, gradients and AdamW's two moments in float32: 16 bytes each; and for each row of a
                micro-batch, L = T + N tokens long:
                layers x L x hidden x e (inputs of the layers, which gradient checkpointing keeps; of the vision tower,
                through which no way back leads, frozen_vision keeps nothing)
                + one text layer's own activations, computed again, L x (hidden x (4e + 32)
                + intermediate x (5e + 4) + heads x head width x 4e), 32-bit norms and peft's 32-bit inputs among them,
                with scores kept + heads x L x L x (2e + 4)
                + for the whole micro-batch, the head: at most 4096 tokens x 32768 of the vocabulary x e at a time, as
                TRL's fused head goes through both in tiles (on a GPU; elsewhere it takes several times as much);
                or reading, which comes first, where that is more
    replay      as training, but with the model's own head over what was written: (N + 1) x vocabulary x (2e + 8) a row
    operations  to read a row 2 x weights of the text part x T + 2 x weights of the vision tower x patches, and of
                attention 4 x heads x head width x T x T and 4 x vision hidden x patches x patches that are looked at,
                a layer (what a mask hides is computed, too);
                2 x (text part + head) for each token written, for which all these weights, and the cache, are read
    by image    rows that are about one image and share what they begin with (models/by_image.py) read C of their T
                tokens, and the image, once for all of them; where only the image's features can be shared, these alone.
                Cache and features are repeated for each row and take no more than those of whole rows: what fits
                unshared fits shared, and memory is planned for whole rows

The factors of reading and training are fitted to single layers of Gemma3-4B and PaliGemma2-3B at their real widths,
whose allocations were counted on a CPU; tests/test_footprint.py counts those of smaller widths.
What a device needs besides (its context, libraries' workspaces, memory cut into pieces that do not fit) is not in
these: `plan` keeps a share of the memory free for it. `auditkit bench` measures what all this comes to on a GPU and
prints it beside the prediction.
"""

from auditkit.planning import sizes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # bytes a weight: 4 bits, 8-bit scales of 64, 32-bit scales of 256 of these
QUANTIZED: dict[int | None, float] = {4: NF4, 8: 1.0}  # bits of a weight -> bytes
TILE = 4096, 32768  # tokens and vocabulary that TRL's fused head looks at in one go


def weights(size: sizes.Size, e: int, bits: int | None = None) -> float:
    """Bytes of a model's weights.

    Args:
        e: bytes of one number.
        bits: 4 or 8 for bitsandbytes' quantized linear layers; embeddings, head and norms are not quantized.
    """
    quantized = QUANTIZED.get(bits, e)
    return size.linear * quantized + (size.parameters - size.linear) * e


def cache(size: sizes.Size, e: int, rows: int, tokens: float) -> float:
    """Bytes of the keys and values of `tokens` tokens of `rows` rows."""
    local = min(tokens, size.window or tokens)
    seen = (size.layers - size.local_layers) * tokens + size.local_layers * local
    return rows * 2 * size.kv_heads * size.head_dim * e * seen


def reading(size: sizes.Size, e: int, rows: int, prompt: int) -> float:
    """Bytes of the activations while `rows` pictures and prompts are read, the pictures themselves included."""
    vision = size.patches * (4 * size.vision_hidden + 2 * size.vision_intermediate) * e
    text = prompt * (3 * size.hidden + 3 * size.intermediate) * e
    if size.scores:
        text = max(text, prompt * 4 * size.hidden * e + size.heads * prompt**2 * (3 * e + 5))
    return rows * (max(vision, text) + size.pixels * e)


def writing(size: sizes.Size, e: int, rows: int, prompt: int, new: int) -> float:
    """Bytes that one batch of answers takes on top of the weights."""
    return cache(size, e, rows, prompt + new) + max(reading(size, e, rows, prompt), 12 * rows * size.vocabulary)


def scoring(size: sizes.Size, e: int, rows: int, prompt: int, new: int) -> float:
    """Bytes that scoring one batch of written texts takes (`token_probabilities`); its cache is never read."""
    logits = rows * (new + 1) * size.vocabulary * (e + 8)
    return cache(size, e, rows, prompt + new) + max(reading(size, e, rows, prompt + new), logits)


def adapter(size: sizes.Size, rank: int) -> float:
    """Bytes of an adapter in training: weights, gradients and two moments, 32 bits each."""
    return 16 * rank * size.lora


def whole(size: sizes.Size) -> float:
    """Bytes of the whole text part in training, likewise, with its embeddings."""
    return 16 * (size.text + size.vocabulary * size.hidden)


def training(size: sizes.Size, e: int, rows: int, prompt: int, new: int) -> float:
    """Bytes of one forward and backward pass of a micro-batch, on top of weights and adapter."""
    head = min(rows * new, TILE[0]) * TILE[1] * e
    return max(rows * _learning(size, e, prompt + new) + head, reading(size, e, rows, prompt + new))


def replaying(size: sizes.Size, e: int, rows: int, prompt: int, new: int) -> float:
    """Bytes of the same for a supervised loss, with the logits of all that was written (the replay of GRPO)."""
    length, logits = prompt + new, (new + 1) * size.vocabulary * (2 * e + 8)
    return max(rows * (_learning(size, e, length) + logits), reading(size, e, rows, length))


def _learning(size: sizes.Size, e: int, length: int) -> float:
    """Bytes of one row: the inputs of all text layers, the activations of one, and the picture."""
    kept = size.layers * length * size.hidden * e
    wide = size.intermediate * (5 * e + 4) + size.heads * size.head_dim * 4 * e
    layer = length * (size.hidden * (4 * e + 32) + wide)
    if size.scores:
        layer += size.heads * length**2 * (2 * e + 4)
    return kept + layer + size.pixels * e


def see_operations(size: sizes.Size) -> float:
    """Floating-point operations of the vision tower for one picture."""
    return 2 * size.patches * (size.vision + 2 * size.vision_layers * size.vision_hidden * size.tile)


def text_operations(size: sizes.Size, tokens: float, before: float = 0) -> float:
    """Floating-point operations of the text part for `tokens` tokens of a row, behind `before` that were read."""
    return 2 * tokens * (size.text + 2 * size.layers * size.heads * size.head_dim * (before + tokens))


def read_operations(
    size: sizes.Size, rows: int, tokens: float, questions: int = 1, common: float = 0, new: float = 0
) -> float:
    """Floating-point operations to read `rows` rows of one picture and `tokens` tokens, its own included.

    Args:
        questions: rows that are about the same picture, and share it where the model can.
        common: of their tokens, those that all of them begin with.
        new: tokens that are written after them, with which they may be more than a window.
    """
    if size.unshared or (size.window and tokens + new > size.window):  # at most the image is encoded once
        return rows * (see_operations(size) / (questions if size.features else 1) + text_operations(size, tokens))
    common = common if questions > 1 else 0
    shared = see_operations(size) + text_operations(size, common)
    return rows * (shared / questions + text_operations(size, tokens - common, common))


def write_bytes(size: sizes.Size, e: int, rows: int, prompt: float, new: float, bits: int | None = None) -> float:
    """Bytes that must pass from memory to write `new` tokens after `rows` prompts: weights and cache, each time."""
    text = size.text * QUANTIZED.get(bits, e) + size.vocabulary * size.hidden * e
    return new * (text + cache(size, e, rows, prompt + new // 2))


def write_operations(size: sizes.Size, rows: int, new: float) -> float:
    """Floating-point operations to write `new` tokens in each of `rows` rows, once their prompts are read."""
    return 2 * rows * new * (size.text + size.vocabulary * size.hidden)


def train_operations(
    size: sizes.Size, rows: int, tokens: float, new: float, questions: int = 1, common: float = 0
) -> float:
    """Floating-point operations of a LoRA step with checkpointing: the text part forward, again, and backward.

    Nothing trained is in the vision tower, so it is passed once, and frozen weights have no gradient of their own.
    """
    seen = rows * see_operations(size) / (questions if not size.unshared or size.features else 1)
    text = read_operations(size, rows, tokens, questions, common) - seen
    return 3 * (text + 2 * rows * size.vocabulary * size.hidden * new) + seen
