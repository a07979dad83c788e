"""minillava: LLaVA from scratch. Read the files in this order; each imports only from those above it.

    files.py          JSON in, whole files out, the index of a JSON file of any size
    images.py         a picture becomes numbers
    attention.py      softmax attention
    vit.py            numbers become N feature vectors (CLIP ViT)
    llama.py          embeddings become hidden states become words (LLaMA)
    llava.py          the projector between them, the splice, the loss
    sentencepiece.py  LLaMA's tokenizer.model
    tokenizer.py      text <-> ids
    conversation.py   a dialogue becomes ids and labels, in one pass
    data.py           LLaVA-JSON becomes batches
    generate.py       prefill, decode, sample, stream
    checkpoint.py     the front door of weights

Around them, a room for each part of the paper:

    weights/          the official layouts in, one layout out
    training/         sampler, optimiser, DDP and FSDP2, the folder of a run, plan
    instruct/         section 3: captions and boxes become instruction data, by a teacher
    evaluation/       section 5: answers, the judge, ScienceQA
    toy/              the synthetic world, its teacher, its backbones, the shipped weights

    ../train.py, ../chat.py, ../eval_scienceqa.py

Letters in shape comments: B batch, T tokens, N image tokens, D width, H heads, C channels of one head, V vocabulary.
"""
