"""The likeliest next tokens."""

import modules.shared as shared


def get_next_logits(*args, **kwargs):
    return shared.model(*args, **kwargs)
