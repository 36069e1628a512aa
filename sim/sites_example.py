"""The file that `isochrone simulate --example` prints: every key once, with a word on what it means."""

EXAMPLE = """\
# Sites, engines and load for `isochrone simulate`. Every key stands here once; what has a default says so.

name = "three-sites"          # of the picture; default: the file's name

# Round trips between sites in ms, in the order of the sites below. Instead of the matrix each site can have a `region`, and
# [[links]] can give or overrule single pairs.
rtt_ms = [
  [0, 8, 95],
  [8, 0, 88],
  [95, 88, 0],
]

[[sites]]
name = "office"               # a-z, 0-9 and "-"
nodes = 2                     # default 1; they are called office-1, office-2
access_ms = 4                 # added by the site's own line to every round trip that leaves it; default 0
jitter_ms = 0.8               # mean jitter of that line per packet; default 0.1
loss = 0.002                  # share of packets it loses; default 0
# region = "europe"           # or north-america-east, north-america-west, south-america, east-asia, oceania

[[sites]]
name = "lab"
nodes = 3

[[sites.models]]              # each node of the site serves it; a site without models only asks
name = "llama-8b"
slots = 4                     # answers in the making at once, per node; default 2
first_token_ms = 120          # median time to the first token in a free slot
tokens_per_s = 60             # median speed after it, per answer
spread = 0.15                 # how much both vary: 0.15 is about 15 % either way; default 0.1
waiting_max = 64              # requests that may wait for a slot, per node; default 64

[[sites]]
name = "cloud"
nodes = 2

[[sites.models]]
name = "llama-8b"
slots = 16
first_token_ms = 60
tokens_per_s = 110

[[load]]
site = "office"
model = "llama-8b"
requests_per_s = 3.0          # in the mean; they come as a Poisson process
tokens = 120                  # mean length of an answer; lengths are exponential, four times the mean at most
max_tokens = 500              # the most that callers ask for; default 0: they do not say
deadline_s = 30               # default 30
stream = true                 # whether answers are read as they come; default true

[[load]]
site = "lab"
model = "llama-8b"
requests_per_s = 1.0
tokens = 200

# What goes wrong, in seconds from when the load begins. `what` is "cut" (a site reaches no other), "down" (nodes die without a
# word; they start again at `to_s`, if there is one) or "drain" (nodes leave in order). `site` means all its nodes.
[[failures]]
what = "cut"
site = "lab"
from_s = 30
to_s = 45

[[failures]]
what = "down"
node = "cloud-1"
from_s = 60
"""
