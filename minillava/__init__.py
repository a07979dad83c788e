"""minillava: LLaVA from scratch. Read the files in this order; each imports only from those above it.

    vision.py         an image becomes N feature vectors (CLIP ViT)
    language.py       embeddings become hidden states become words (LLaMA)
    model.py          the projector between them, the splice, the loss
    tokenizer.py      text <-> ids
    conversation.py   a dialogue becomes ids and labels, in one pass
    data.py           LLaVA-JSON becomes batches
    generate.py       prefill, decode, sample, stream
    checkpoint.py     weights in and out
    optim.py          schedule, AdamW and Muon, bf16 over fp32
    parallel.py       one process or many: DDP, FSDP2, checkpoints of a run
    run.py, plan.py   a run is a folder; what a training would take
    toy_world.py      the synthetic world of the miniature, and its template teacher
    toy_backbones.py  pretrains the toy CLIP and the toy Vicuna
    scienceqa.py      its problems become conversations, its answers a table
    teacher.py        who writes data and judges: ask(messages) -> text
    instruct_data.py  captions and boxes become instruction data
    llava_bench.py    answers to question files, a judge, relative scores
    ../train.py       stage 1, stage 2
    ../chat.py        talk with it
    ../eval_scienceqa.py    answer, score, ensemble

Letters in shape comments: B batch, T tokens, N image tokens, D width, H heads, C channels of one head, V vocabulary.
"""
