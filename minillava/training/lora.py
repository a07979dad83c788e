"""LoRA (Hu et al. 2021): beside each linear layer, a product of two thin matrices is trained.

    y = W x + (alpha / rank) B A x         W [out, in] frozen, A [rank, in], B [out, rank]

A starts at random and B at zero, so that before the first step nothing has changed. For a layer of
4096 x 4096 at rank 128, A and B are 6 % of the weights; W needs no gradient and no optimiser, and
may stand in bf16, int8 or int4 (QLoRA, Dettmers et al. 2023). As in LLaVA, all linear layers of the
language model but its head have one, and the projector is trained whole. Unlike there, without
dropout: a resumed run has the same bits.

A word that a model has never said is beyond it. While others were learned, the rows of such words
in the head were all pushed the same way, until they were one and the same: no hidden state can tell
them apart. `words` trains the embeddings and the head too, whole.
"""
from minillava.linear import LoraLinear
from minillava.weights.adapters import Adapter


def add_lora(model, rank, alpha, words=False):
    """Freezes a Llava but for its projector, and puts a LoraLinear in each linear layer's place."""
    model.freeze_for(1)
    if words:
        model.language_model.embed_tokens.requires_grad_(True)
        model.language_model.lm_head.requires_grad_(True)
    for block in model.language_model.layers:
        for part in (block.self_attn, block.mlp):
            for name, layer in list(part.named_children()):
                setattr(part, name, LoraLinear(layer, rank, alpha))


def adapter_of(weights, rank, alpha, base, tower=""):
    """The trained weights {name in the model: tensor} -> an Adapter of these folders."""
    matrices, others = {}, {}
    for name, tensor in weights.items():
        layer, _, half = name.rpartition(".")
        if half == "A":
            matrices[layer] = (tensor, weights[f"{layer}.B"])
        elif half != "B":
            others[name] = tensor
    return Adapter(rank, alpha, matrices, others, str(base), str(tower))
