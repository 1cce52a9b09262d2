"""An audit's world with scripted models: what they say depends on who is asked what, and every question is counted."""

from collections import Counter
from functools import partial
from types import SimpleNamespace

from auditkit.audit import batches
from auditkit.audit.loop import run_audit
from auditkit.data.load import load_images
from auditkit.models import transformers
from auditkit.models.transformers import VLM, torch

P = SimpleNamespace(
    audit_probes=20,
    search="once",
    seed=3,
    engine="local",
    ways=["question"],
    batch_size=4,
    temperature=1.0,
    min_token_probability=1e-3,
    max_question_tokens=48,
    max_answer_tokens=8,
    quorum=0.6,
    same="text",
)
PICTURES = load_images("miniature").pictures("audit", 24, seed=3)
NAMES = ("auditor", "target", "gemma3", "idefics3", "llava")


class Killed(BaseException):
    """What a kill looks like to the code it hits: nothing catches it."""


class World:
    """Models without weights: what they say depends on who is asked what; every question is counted."""

    def __init__(self, monkeypatch):
        self.calls: Counter = Counter()
        self.loaded: Counter = Counter()
        self.batches = 0
        self.kill_at = None
        monkeypatch.setattr(transformers, "_write", self.write)
        monkeypatch.setattr(batches, "rarest_token", lambda untrained, pictures, texts: [0.5] * len(texts))
        self.auditors = {name: VLM("auditor", _Model(), None, 4) for name in ("untrained", "60", "trained")}
        self.target, *self.references = [VLM(name, _Model(), None, 4) for name in NAMES[1:]]

    def write(self, model, pictures, prompts, max_new_tokens, temperature):
        self.batches += 1
        if self.batches == self.kill_at:
            raise Killed
        if model.name == "auditor":
            seed = torch.initial_seed()
            numbers = [seed + i for i in range(len(prompts))]
            return ["mumble" if n % 5 == 0 else f"is object {n % 7} red or blue?" for n in numbers]
        self.calls.update((model.name, id(image), prompt) for image, prompt in zip(pictures, prompts, strict=True))
        n = [int(prompt.split()[2]) for prompt in prompts]
        return ["blue" if model.name == "target" and i < 3 else "none" if model.name == "llava" else "red" for i in n]

    def run(self, out, p=P, **more):
        return run_audit(*self.loaders(), PICTURES, p, out, **more)

    def loaders(self):
        """What loads the models, and counts that."""

        def load(name, model):
            self.loaded[name] += 1
            return model

        auditors = {name: partial(load, name, model) for name, model in self.auditors.items()}
        target, *references = [partial(load, model.name, model) for model in (self.target, *self.references)]
        return auditors, target, references


class _Model:
    device = torch.device("cpu")
