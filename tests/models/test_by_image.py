"""What rows about one image begin with is read once; so is what is learnt from it."""

import pytest
import torch

from auditkit.miniature.boards import Boards
from auditkit.models import by_image, processors
from auditkit.models.load import load_model


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_on_two_threads_rows_that_share_an_image_are_learnt_from_in_the_same_way_each_time(two_threads):
    """Gradients of all rows about an image are added up, always in the same order, so that a seed says what comes."""
    auditor = load_model("miniature:auditor", device="cpu")
    images = [picture.image for picture in Boards().pictures("audit", 3, 0)]
    shown = [image for _ in range(21) for image in images]
    texts = [processors.chat(auditor, "what is in cell a1?")] * len(shown)
    endings = [torch.tensor([5 + row, 6, 7]) for row in range(len(shown))]
    learnt = [weights for name, weights in auditor.model.named_parameters() if name.endswith("k_proj.weight")]

    def gradients() -> list[torch.Tensor]:
        begun = by_image.begin(auditor, shown, texts, endings, 0)
        return torch.autograd.grad(auditor.model(**begun.rest).logits.square().mean(), learnt, allow_unused=True)

    first, *again = [[one for one in gradients() if one is not None] for _ in range(21)]
    assert first and all(torch.equal(one, other) for found in again for one, other in zip(first, found, strict=True))
