"""What rows about one image begin with is read once; so is what is learnt from it."""

import torch

from auditkit.miniature.boards import Boards
from auditkit.models import by_image, processors
from auditkit.models.load import load_model


def test_on_two_threads_rows_that_share_an_image_are_learnt_from_in_the_same_way_each_time():
    """Gradients of all rows about an image are added up, always in the same order, so that a seed says what comes."""
    auditor = load_model("miniature:auditor", device="cpu")
    images = [picture.image for picture in Boards().pictures("audit", 3, 0)]
    shown = [image for _ in range(21) for image in images]
    texts = [processors.chat(auditor, "what is in cell a1?")] * len(shown)
    begun = by_image.begin(auditor, shown, texts, [torch.tensor([5, 6, 7])] * len(shown), 0)
    dice = torch.Generator().manual_seed(0)
    keys = [layer.keys for layer in begun.cache.layers]  # [63, heads, read, width] each, of 3 rows that were read
    loss = sum((one * torch.randn(one.shape, generator=dice)).sum() for one in keys)
    learnt = [weights for name, weights in auditor.model.named_parameters() if name.endswith("k_proj.weight")]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = [torch.autograd.grad(loss, learnt, retain_graph=True, allow_unused=True) for _ in range(6)]
    finally:
        torch.set_num_threads(before)
    first, *again = [[one for one in gradients if one is not None] for gradients in found]
    assert first and all(torch.equal(one, other) for more in again for one, other in zip(first, more, strict=True))
