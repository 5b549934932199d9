cimport cython

cdef class Value:
    cdef public double data, grad, dleft, dright
    cdef public Value left, right
    cdef public Py_ssize_t users

@cython.locals(total=Value, i=Py_ssize_t)
cpdef Value dot(list a, list b)
