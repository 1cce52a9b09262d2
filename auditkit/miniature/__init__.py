"""The miniature: a board world whose every answer is known, and tiny trained models with planted gaps."""
