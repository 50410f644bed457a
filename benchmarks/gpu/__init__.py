"""What training and sampling give on a GPU, beside plain TRL and transformers, in parts of a few minutes each.

    python -m benchmarks.gpu.pack wheels          # here: what a bare machine lacks, under 60 MB
    python -m benchmarks.gpu sft --out results    # there: one part; also qlora, dpo, reward, sampling
    python -m benchmarks.gpu sft --shape tiny     # anywhere: the same on a CPU, in a minute

A bare machine has torch, transformers, peft, accelerate and pyarrow, no network, no Ray. Weights are random, made from
a config: speed and memory don't ask what a model knows.
"""
