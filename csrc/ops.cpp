// What operators there are. Shape rules and derivatives stand in revgrad/ops/.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(revgrad, m) {
  m.def("orthogonal_down(Tensor x, Tensor q, int[] stride, bool channels_last) -> Tensor");
  m.def("orthogonal_up(Tensor y, Tensor q, int[] stride, bool channels_last) -> Tensor");
  m.def(
      "orthogonal_weight(Tensor x, Tensor y, int[] stride, bool shared, bool channels_last)"
      " -> Tensor");
  m.def(
      "orthogonal_down_exact(Tensor x, Tensor factors, int[] stride, bool channels_last)"
      " -> Tensor");
  m.def(
      "orthogonal_up_exact(Tensor y, Tensor factors, int[] stride, bool channels_last)"
      " -> Tensor");
  m.def("expm_skew(Tensor theta, bool save) -> (Tensor, Tensor, Tensor)");
  m.def("expm_skew_backward(Tensor grad, Tensor theta, Tensor result, Tensor tape, Tensor plan)"
        " -> Tensor");
  m.def(
      "norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? rstd, int groups,"
      " bool over_batch, float eps, int activation, float slope) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_update_(Tensor(a!) stream, Tensor x, Tensor? weight, Tensor? bias, Tensor? mean,"
      " Tensor? rstd, int groups, bool over_batch, float eps, int activation, float slope,"
      " int sign, int fraction_bits) -> (Tensor, Tensor)");
  m.def(
      "norm_act_update(Tensor stream, Tensor x, Tensor? weight, Tensor? bias, Tensor? mean,"
      " Tensor? rstd, int groups, bool over_batch, float eps, int activation, float slope,"
      " int sign, int fraction_bits) -> (Tensor, Tensor, Tensor)");
  m.def(
      "norm_act_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? weight,"
      " Tensor? bias, int groups, bool over_batch, bool constant_stats, int activation,"
      " float slope) -> (Tensor, Tensor, Tensor)");
}
