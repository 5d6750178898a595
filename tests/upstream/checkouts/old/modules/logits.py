"""The likeliest next tokens."""

import modules.shared as shared


def get_next_logits(prompt, state, use_samplers, previous, top_logits=50, return_dict=False):
    if use_samplers:
        tokens = shared.tokenizer.encode(prompt).cuda()
    else:
        tokens = shared.tokenizer.encode(prompt, return_tensors="pt").cuda()

    return shared.model(input_ids=tokens)
