# setup.cfg installs the folder kernels/ as realm_min.kernels; pyright, which reads the source tree, learns it here.
from kernels import mips_topk as mips_topk
from kernels import span_logits as span_logits
