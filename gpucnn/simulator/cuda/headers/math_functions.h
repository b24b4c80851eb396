// Its names are known without it.
#pragma once
