"""Randomized smoothing: certificates from the votes of a classifier under noise."""

from robustrun.methods.smoothing.binomial import clopper_pearson_lower, clopper_pearson_upper
from robustrun.methods.smoothing.gaussian import (
    ABSTAIN,
    SmoothedCertificate,
    certify,
    predict,
    top_two_pvalue,
)
from robustrun.methods.smoothing.gaussian_adaptive import certify_adaptive, looks, spending
from robustrun.methods.smoothing.gaussian_curves import certified_accuracy, to_three_digits, upper_envelope
from robustrun.methods.smoothing.gaussian_noise import Gaussian, Laplace, Law, Noise, Norm, Uniform, noise_law
from robustrun.methods.smoothing.gaussian_votes import Classifier, NoisyVotes, Votes
from robustrun.methods.smoothing.label_attack import (
    distance_order,
    fit_logistic,
    flips_to_break,
    influence_order,
)
from robustrun.methods.smoothing.label_certify import (
    LabelCertificate,
    certify_binary,
    certify_multiclass,
)
from robustrun.methods.smoothing.label_chernoff import (
    BinaryVote,
    LogMoment,
    binary_vote,
    minimise,
)
from robustrun.methods.smoothing.label_compress import compress, group_by_label
from robustrun.methods.smoothing.label_enumeration import (
    all_labellings,
    enumerated_radius,
    enumerated_votes,
)
from robustrun.methods.smoothing.label_exact import ExactFlips, exact_flips, exact_flips_multiclass
from robustrun.methods.smoothing.label_hat import RidgeHat
from robustrun.methods.smoothing.label_partition import (
    PartitionVotes,
    partition_radius,
    partition_votes,
)
from robustrun.methods.smoothing.label_radius import (
    binary_nats,
    flip_divergence,
    kl_radius,
    kl_radius_multiclass,
    kl_thresholds,
    np_radius,
    np_thresholds,
    pair_nats,
)
from robustrun.methods.smoothing.label_rivals import RivalVotes, rival_votes
from robustrun.methods.smoothing.label_sampling import SampledVotes, noisy_labels, sampled_votes

__all__ = [
    "ABSTAIN",
    "BinaryVote",
    "Classifier",
    "ExactFlips",
    "Gaussian",
    "LabelCertificate",
    "Laplace",
    "Law",
    "LogMoment",
    "Noise",
    "NoisyVotes",
    "Norm",
    "PartitionVotes",
    "RidgeHat",
    "RivalVotes",
    "SampledVotes",
    "SmoothedCertificate",
    "Uniform",
    "Votes",
    "all_labellings",
    "binary_nats",
    "binary_vote",
    "certified_accuracy",
    "certify",
    "certify_adaptive",
    "certify_binary",
    "certify_multiclass",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "compress",
    "distance_order",
    "enumerated_radius",
    "enumerated_votes",
    "exact_flips",
    "exact_flips_multiclass",
    "fit_logistic",
    "flip_divergence",
    "flips_to_break",
    "group_by_label",
    "influence_order",
    "kl_radius",
    "kl_radius_multiclass",
    "kl_thresholds",
    "looks",
    "minimise",
    "noise_law",
    "noisy_labels",
    "np_radius",
    "np_thresholds",
    "pair_nats",
    "partition_radius",
    "partition_votes",
    "predict",
    "rival_votes",
    "sampled_votes",
    "spending",
    "to_three_digits",
    "top_two_pvalue",
    "upper_envelope",
]
