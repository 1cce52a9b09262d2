"""auditkit: find, name and repair what a vision-language model gets wrong (AuditDM, arXiv 2512.16921).

One sub-package, a room, for each stage of the method, in the order in which data flows; an import only ever points to a
room further up the list (tests/test_architecture.py). Each room's docstring says what comes in, what goes out and where
to start reading. Beside the rooms: `redact`, `text`, `errors`, `yaml_file`, `stats`, `specs`, `session`, `params`,
which all of them may read, and `cli`.
"""

ROOMS = (
    "runs",  # a run is a folder: stages, records, what was asked and what it cost
    "data",  # images and, where there are any, questions with answers
    "models",  # anything that looks at an image and writes
    "consensus",  # do two answers mean the same, and what do the references agree on?
    "counterfactual",  # images made from a caption or changed by a command
    "auditor",  # the model that writes questions and wishes, and its training with GRPO
    "audit",  # the auditor asks, all models answer, every probe gets its outcome
    "findings",  # failure types, their names, how true they are, a person's review
    "repair",  # fine-tuning on the findings, and the benchmarks before and after
    "report",  # summary.json, the report's page, figures, export
    "miniature",  # the board world and its trained models
    "planning",  # before a download or a run: does the model do, does it fit, how long will it take?
    "experiments",  # many runs: papermill, rounds, studies
    "workshop",  # exercises with a check each, and the game of plant and hunt
)
