"""How fast: homeostat beside torch eager, torch.compile and JAX, on the machine at hand.

clock     a clean sample, and medians of them         cases     what is measured, as data
layers    the contenders of a case                    written   the code people write where torch has no layer
jaxed     the same norms for JAX                      inside    what is taken from inside homeostat
speed     measure, and keep a record of each cell     records   the records, on disk as they come
copying   the copy limit                              growth    time against elements
models    four whole networks                         whole     their steps
heap      memory that stays
report    records -> docs/performance.md              tables, plot    its parts
ranks     what sharing statistics between processes costs
soak      four processes train, one is killed: how do the others end
"""
