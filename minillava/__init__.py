"""minillava: LLaVA from scratch. Read the files in this order; each uses only those above it.

The ground floor, which a first reading may pass by:

    files.py           JSON in, whole files out, the index of a JSON file of any size
    terminal.py        reading a line, drawing a picture, showing text that is not ours
    sentencepiece.py   LLaMA's tokenizer.model
    tokenizer_json.py  Hugging Face's tokenizer.json
    on_cpu.py          RMSNorm, SwiGLU and attention, sooner on a CPU
    linear.py          linear layers of 8 or 4 bits, or for a processor that is slow in bf16

The core, what a learner reads in one sitting:

    images.py          a picture becomes numbers
    attention.py       softmax attention
    vit.py             numbers become N feature vectors (CLIP's vision transformer)
    llama.py           embeddings become hidden states become words (LLaMA)
    llava.py           the projector between them, the splice, the loss
    tokenizer.py       text <-> ids
    conversation.py    a dialogue becomes ids and labels, in one pass
    data.py            LLaVA-JSON becomes batches
    generate.py        prefill, decode, sample, stream

What stands around the core, and reaches into the rooms:

    checkpoint.py      the front door of weights: load_llava, load_language, save_llava
    fastest.py         the fastest product of a linear layer on this machine
    theirs.py          the same work in transformers, for bench
    bench.py           the measurements: loading, prefill, decoding, a training step

A room for each part of the paper; a room uses only those above it:

    weights/           the official layouts in and out, deltas, LoRA adapters, quantising
    training/          section 4.2: recipes, sampler, optimizer, DDP and FSDP2, LoRA, a run's folder
    instruct/          section 3: captions and boxes become instruction data, by a teacher
    evaluation/        section 5: answers, benchmarks, the judge, ScienceQA
    toy/               the synthetic world, its teacher, its backbones, the shipped weights
    explain/           what teaches by running: a look inside the model, famous bugs, its limits

    ../train.py, ../chat.py, ../eval_scienceqa.py

Letters in shape comments: B batch, T tokens (where there is a cache, the new ones), K keys (the
cached ones too), N image tokens, S side of an image in pixels, D width, H heads, G groups of heads
that share keys and values, C channels of one head, V vocabulary, P side of a patch in pixels.
"""
