r"""The LinearConv of given filters: primary filters and coefficients that come as close to them as the variant allows.

    W ~ C W_p,    C = [I ; A],    W (F, K),    W_p (P, K),    A (F - P, P)

For any A the best primary filters are W_p = T W with T = C^+ = (I + A^T A)^-1 [I  A^T], whatever the inputs are weighed
by; what is left over is (I - C T) W. So only A is looked for, and all that counts of the filters is a root S of their
second moments S S^T (F, F): S = W fits the filters, S S^T = E[y y^T] of the layer's outputs y fits the outputs.

    full_rank   A of the best subspace, the first P left singular vectors of S (Eckart-Young)
    low_rank    A = column @ row: alternately the best A of that rank (reduced-rank regression) and the best W_p
    sparse      A with a given number of zeros: alternately those whose loss costs least, and the best W_p

    by_gradient A as a differentiable function of any parameters: L-BFGS from the best fit of A to the full-rank one

The alternations start from the first P filters as primary ones with the secondary ones regressed on them, go down from
there, and are tried from the full-rank solution too. All is computed in float64.
"""

from collections.abc import Callable
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SINGULAR_VALUE = 1e-4  # bounds the coefficients by its reciprocal
RIDGE = 1e-7  # share of the primary filters' mean second moment; keeps regressions from huge coefficients
ERROR_MARGIN = 1.002  # times the smallest error: a solution of smaller coefficients is preferred
MAX_ROUNDS = 100
MAX_MASK_ROUNDS = 4  # of the coefficients to prune
MIN_GAIN = 1e-4  # share of the error by which a round of an alternation must lower it, or it was the last
MAX_CG_ITERATIONS = 60  # iterations at most
MAX_LBFGS_ITERATIONS = 50  # for each of the two objectives
CG_TOLERANCE = 1e-12  # of the squared residual, in the preconditioner's norm and relative to the first, that ends them


def root_of(filters: Tensor) -> Tensor:
    """Return a root S (F, min(F, K)) of the second moments S S^T = W W^T of filters (F, ...), in float64."""
    rows = filters.detach().flatten(1).double()
    if rows.shape[1] <= rows.shape[0]:
        return rows
    return torch.linalg.qr(rows.T, mode="r").R.T


def root_of_moments(moments: Tensor) -> Tensor:
    """Return a root S (F, F) of a symmetric matrix of second moments S S^T (F, F), negative eigenvalues cut off."""
    values, vectors = torch.linalg.eigh(moments.double())
    return vectors * values.clamp_min(0).sqrt()


def primary_of(coefficients: Tensor, filters: Tensor) -> Tensor:
    """Return the best primary filters T W (P, ...), float64, for coefficients A (F - P, P) of filters W (F, ...)."""
    primary = coefficients.shape[1]
    rows = filters.detach().double().flatten(1)
    gram = coefficients.T @ coefficients
    gram.diagonal().add_(1)
    right = rows[:primary] + coefficients.T @ rows[primary:]
    best = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    return best.view(primary, *filters.shape[1:])


def residual(coefficients: Tensor, root: Tensor) -> Tensor:
    """Return what the best primary filters leave over, (I - C T) S, of a root S (F, r)."""
    best = primary_of(coefficients, root)
    return root - torch.cat((best, coefficients @ best))


def error(coefficients: Tensor, root: Tensor) -> float:
    """Return the Frobenius norm of what the best primary filters leave over of a root (F, r)."""
    return torch.linalg.vector_norm(residual(coefficients, root)).item()


def full_rank(root: Tensor, primary: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the coefficients A (F - P, P) of the best LinearConv with P primary filters for a root S (F, r).

    With U the first P left singular vectors of S, A = U_s U_p^-1 would be exact. Where the first P filters hardly
    vary in a direction that the others need, U_p is close to singular and A is huge, so small singular values of U_p
    are lifted to a limit: the secondary filters stay exact, the primary ones change by less than the limit. The norm of
    A is at most the limit's reciprocal, 1e4 at most. The largest limit is taken whose error, with everything rounded
    to the `dtype` of the layer, is hardly larger than the smallest.
    """
    left = torch.linalg.svd(root, full_matrices=False).U[:, :primary]
    vectors, values, adjoint = torch.linalg.svd(left[:primary], full_matrices=False)
    solutions = []
    for exponent in range(9):  # of limits from 1 down to MIN_SINGULAR_VALUE
        lifted = values.clamp_min(max(10 ** (-exponent / 2), MIN_SINGULAR_VALUE))
        coefficients = left[primary:] @ adjoint.T / lifted @ vectors.T
        solutions.append((_rounded_error(coefficients, root, dtype), coefficients))
    allowed = ERROR_MARGIN * min(loss for loss, _ in solutions)
    return next(coefficients for loss, coefficients in solutions if loss <= allowed)


def _rounded_error(coefficients, root, dtype):
    """The error with primary rows and coefficients in lower precision."""
    rounded = coefficients.to(dtype).double()
    best = primary_of(rounded, root).to(dtype).double()
    return torch.linalg.vector_norm(root - torch.cat((best, rounded @ best))).item()


def low_rank(root: Tensor, primary: int, rank: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors (F - P, R) and (R, P) of coefficients for a root S (F, r), of balanced norms.

    Those of rank R are looked for from `start` (F - P, P), as of full rank; above that, zeros fill the factors up.
    """
    if rank < min(start.shape):
        start = _best_alternation(root, primary, start, partial(_reduced_rank_regression, root, rank))
    left, values, right = torch.linalg.svd(start, full_matrices=False)
    roots = values[:rank].sqrt()
    missing = rank - len(roots)
    return F.pad(left[:, :rank] * roots, (0, missing)), F.pad(roots[:, None] * right[:rank], (0, 0, 0, missing))


def sparse(root: Tensor, primary: int, pruned: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return coefficients (F - P, P) for a root S (F, r), `pruned` of them zero, and their mask of zeros and ones.

    Looked for from `start` too, as of full rank. Which go is decided by what their loss costs when the others of their
    row make up for it, a^2 / (H^-1)_jj with H the second moments of the primary filters (Hassibi & Stork, "Optimal
    Brain Surgeon", 1993).
    """
    chosen = _best_alternation(root, primary, start, partial(_prune_and_regress, root, pruned), MAX_MASK_ROUNDS)
    mask = _mask_of_smallest(chosen.abs(), pruned)
    return _alternate(root, primary_of(chosen, root), partial(masked_regression, root, mask)), mask


def _best_alternation(root, primary, start, fit, max_rounds=MAX_ROUNDS):
    found = [_alternate(root, first, fit, max_rounds) for first in (root[:primary], primary_of(start, root))]
    return min(found, key=partial(error, root=root))


def _alternate(root, primary_root, fit, max_rounds=MAX_ROUNDS):
    """Alternate `fit(primary rows of the root)` and the best primary rows; returns the best coefficients seen."""
    best, least = None, float("inf")
    for _ in range(max_rounds):
        coefficients = fit(primary_root)
        loss = error(coefficients, root)
        gained = least - loss
        if best is None or gained > 0:
            best, least = coefficients, loss
        if not gained > MIN_GAIN * loss:
            break
        primary_root = primary_of(coefficients, root)
    return best


def _reduced_rank_regression(root, rank, primary_root):
    cross, gram, factor = _normal_equations(root, primary_root)
    solution = torch.cholesky_solve(cross.T, factor).T
    explained = torch.linalg.eigh(solution @ gram @ solution.T).eigenvectors[:, -rank:]
    return explained @ (explained.T @ solution)


def _prune_and_regress(root, pruned, primary_root):
    cross, _, factor = _normal_equations(root, primary_root)
    solution = torch.cholesky_solve(cross.T, factor).T
    mask = _mask_of_smallest(solution.square() / torch.cholesky_inverse(factor).diagonal(), pruned)
    return masked_regression(root, mask, primary_root)


def _mask_of_smallest(values, count):
    mask = torch.ones_like(values)
    mask.view(-1)[values.flatten().topk(count, largest=False).indices] = 0
    return mask


def _normal_equations(root, primary_root):
    """Moments X (F - P, P) of secondary and primary rows, H (P, P) of primary ones with a ridge, the factor of H."""
    gram = primary_root @ primary_root.T
    gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
    return root[len(primary_root) :] @ primary_root.T, gram, torch.linalg.cholesky(gram)


def masked_regression(root: Tensor, mask: Tensor, primary_root: Tensor) -> Tensor:
    """Return A (F - P, P), zero where the mask is, that regresses the secondary rows of a root S on primary rows T S.

    Minimises tr(A H A^T - 2 A X^T) by conjugate gradients, all rows of A at once.
    """
    cross, gram, _ = _normal_equations(root, primary_root)
    tiny = torch.finfo(gram.dtype).tiny
    preconditioner = mask / gram.diagonal()
    solution, remainder = torch.zeros_like(cross), cross * mask
    direction = remainder * preconditioner
    squared = (remainder * direction).sum(1, keepdim=True)  # (F - P, 1)
    enough = CG_TOLERANCE * squared
    for _ in range(MAX_CG_ITERATIONS):
        if (squared <= enough).all():
            break
        product = (direction @ gram) * mask
        length = squared / (direction * product).sum(1, keepdim=True).clamp_min(tiny)
        solution = solution + length * direction
        remainder = remainder - length * product
        preconditioned = remainder * preconditioner
        before, squared = squared, (remainder * preconditioned).sum(1, keepdim=True)
        direction = preconditioned + squared / before.clamp_min(tiny) * direction
    return solution


def by_gradient(
    root: Tensor, factors: Callable[[], tuple[Tensor, ...]], parameters: list[Tensor], start: Tensor
) -> None:
    """Fit parameters in place, so that the product of `factors()`, A (F - P, P), has a small error for a root S (F, r).

    The first objective is the distance from `start` (F - P, P), as of full rank. The second one is the error itself,
    which is differentiable because the best primary filters are an explicit function of A.
    """

    def minimise(objective):
        optimizer = torch.optim.LBFGS(parameters, max_iter=MAX_LBFGS_ITERATIONS, line_search_fn="strong_wolfe")

        def loss_with_gradients():
            optimizer.zero_grad()
            loss = objective(reduce(torch.matmul, factors())).square().sum()
            loss.backward()
            return loss

        optimizer.step(loss_with_gradients)

    scale = torch.linalg.vector_norm(root).clamp_min(torch.finfo(root.dtype).tiny)
    with torch.enable_grad():
        minimise(lambda coefficients: coefficients - start)
        minimise(lambda coefficients: residual(coefficients, root / scale))
