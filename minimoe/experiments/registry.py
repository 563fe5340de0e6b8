"""[evidence] All experiments by name."""

from minimoe.experiments.digits.experiment import DIGITS
from minimoe.experiments.digits.lr_search import DIGITS_LR_SEARCH
from minimoe.experiments.distillation.experiment import DISTILLATION
from minimoe.experiments.distillation.lr_search import DISTILLATION_LR_SEARCH
from minimoe.experiments.distillation.student_quality import STUDENT_QUALITY, TEXT_ONLY_COPY
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.expert_parallel.communication import EXPERT_PARALLEL
from minimoe.experiments.expert_parallel.placement import EPLB
from minimoe.experiments.expert_parallel.speed import EXPERT_PARALLEL_SPEED
from minimoe.experiments.fp8_training import FP8_TRAINING
from minimoe.experiments.load_balance import LOAD_BALANCE
from minimoe.experiments.lr_search import LR_SEARCH, LR_SEARCH_STANDARD
from minimoe.experiments.model_cost.memory_fit import MEMORY_FIT
from minimoe.experiments.model_cost.mixtral import MIXTRAL
from minimoe.experiments.model_cost.training_bill import TRAINING_BILL
from minimoe.experiments.moe_vs_dense.experiment import MOE_VS_DENSE
from minimoe.experiments.precision.accumulation import ACCUMULATION
from minimoe.experiments.precision.matmul_error import ERROR_BOUNDS, MATMUL_ERROR
from minimoe.experiments.precision.number_formats import FORMAT_ACCURACY, ROUNDED_CONSTANTS, STORAGE
from minimoe.experiments.precision.outliers import OUTLIERS
from minimoe.experiments.precision.quantization_noise import QUANTIZATION_NOISE
from minimoe.experiments.shared_expert import SHARED_EXPERT
from minimoe.experiments.specialization import SPECIALIZATION

EXPERIMENTS: dict[str, Experiment] = {
    "moe-vs-dense": MOE_VS_DENSE,
    "load-balance": LOAD_BALANCE,
    "shared-expert": SHARED_EXPERT,
    "specialization": SPECIALIZATION,
    "expert-parallel": EXPERT_PARALLEL,
    "expert-parallel-speed": EXPERT_PARALLEL_SPEED,
    "eplb": EPLB,
    "fp8-training": FP8_TRAINING,
    "storage": STORAGE,
    "rounded-constants": ROUNDED_CONSTANTS,
    "format-accuracy": FORMAT_ACCURACY,
    "quantization-noise": QUANTIZATION_NOISE,
    "outliers": OUTLIERS,
    "matmul-error": MATMUL_ERROR,
    "error-bounds": ERROR_BOUNDS,
    "accumulation": ACCUMULATION,
    "distillation": DISTILLATION,
    "digits": DIGITS,
    "student-quality": STUDENT_QUALITY,
    "text-only-copy": TEXT_ONLY_COPY,
    "training-bill": TRAINING_BILL,
    "memory-fit": MEMORY_FIT,
    "mixtral": MIXTRAL,
    "lr-search": LR_SEARCH,
    "lr-search-standard": LR_SEARCH_STANDARD,
    "lr-search-distillation": DISTILLATION_LR_SEARCH,
    "lr-search-digits": DIGITS_LR_SEARCH,
}
