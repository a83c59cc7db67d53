-- The journal of one run. Blobs of numbers are little-endian: tokens u32, log-probs f32. `sum`: CRC-32
-- over the row's other values.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

-- One row a group; purpose is 'train' or 'eval'; of a training group, `step` is the one it trains.
CREATE TABLE prompts (
    group_id INTEGER PRIMARY KEY,
    purpose TEXT NOT NULL,
    step INTEGER NOT NULL,
    problem TEXT NOT NULL,
    text TEXT NOT NULL,
    gold TEXT NOT NULL,
    tokens BLOB NOT NULL,
    sum INTEGER NOT NULL
) STRICT;

CREATE TABLE completions (
    group_id INTEGER NOT NULL,
    sample_index INTEGER NOT NULL,
    worker TEXT NOT NULL,
    -- Which policy versions sampled it: [first token u32, step u64, digest 32 bytes] a span.
    versions BLOB NOT NULL,
    tokens BLOB NOT NULL,
    logprobs BLOB NOT NULL,
    finish_reason INTEGER NOT NULL,
    decode_seconds REAL NOT NULL,
    text TEXT NOT NULL,
    reward REAL NOT NULL,
    judged INTEGER NOT NULL,
    correct INTEGER NOT NULL,
    -- {"name": value or null}; null: not judged. {"length", "value"}: waits for the group.
    rewards TEXT NOT NULL,
    sum INTEGER NOT NULL,
    PRIMARY KEY (group_id, sample_index)
) STRICT;

-- Step 0 is the adapter that the run starts from. `record` is a tina.v1.StepRecord.
CREATE TABLE steps (
    step INTEGER PRIMARY KEY,
    digest BLOB NOT NULL,
    record BLOB,
    sum INTEGER NOT NULL
) STRICT;

CREATE TABLE metrics (
    step INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL,
    PRIMARY KEY (step, name)
) STRICT;

-- `record` is a tina.v1.EvalRecord.
CREATE TABLE evals (
    step INTEGER PRIMARY KEY,
    accuracy REAL NOT NULL,
    record BLOB NOT NULL,
    sum INTEGER NOT NULL
) STRICT;
