// CuPy asks for the version that its module was built with: there is none here.
#pragma once
#define THRUST_VERSION 0
