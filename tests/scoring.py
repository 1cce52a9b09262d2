"""Records scored as the notebooks do it, by the parameters of a run."""

from auditkit.audit.score import score_probes
from auditkit.consensus.choose import choose_same


def score(records, p, folder=None, **bounds):
    """`score_probes` with the sameness and the bounds of p; `bounds` go before these."""
    names = ("quorum", "min_token_probability", "picture_gain")
    own = {name: getattr(p, name) for name in names if hasattr(p, name)}
    return score_probes(records, choose_same(p, folder), **{"picture_gain": 0.2, **own, **bounds})
